/* y = W x for n tokens and a ternary slab. */
#include "scalar.h"

void tmac_ternary_gemm_scalar(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, void *scratch, float *y, int64_t ldy)
{
    (void)scratch;
    const int32_t steps = tmac_ternary_steps(shape), row_begin = block_begin * TMAC_ROWS_PER_BLOCK;
    for (int32_t row = row_begin; row < shape->m && row < block_end * TMAC_ROWS_PER_BLOCK; row++)
        for (int32_t t = 0; t < lut->n; t++) {
            int32_t sum = 0;
            for (int32_t i = 0; i < steps * TERNARY_GROUPS; i++) {
                const int32_t s = i / TERNARY_GROUPS, g = i % TERNARY_GROUPS, r = row - row_begin;
                const int8_t *lo = lut->tables + ((int64_t)s * lut->n + t) * TERNARY_STEP_TABLES;
                lo += g * 2 * TERNARY_TABLE_BYTES;
                const int8_t *hi = lo + TERNARY_TABLE_BYTES;
                const int64_t at = tmac_ternary_offset(block_end - block_begin, steps, r / TMAC_ROWS_PER_BLOCK, s, g);
                const uint8_t code = slab[at + r % TMAC_ROWS_PER_BLOCK];
                const int32_t entry = EXACT_SPLIT * hi[code & 0x7f] + lo[code & 0x7f];
                sum += code & 0x80 ? -entry : entry;
            }
            y[t * ldy + row] = scales[row] * (float)sum * lut->token_scales[t];
        }
}
