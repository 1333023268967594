/* y = W x for n tokens over one K panel of a ternary slab. */
#include "scalar.h"

void tmac_ternary_gemm_scalar(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, int32_t step_begin, int32_t step_end, float *y,
                              int64_t ldy)
{
    const int32_t steps = tmac_ternary_steps(shape), row_begin = block_begin * TMAC_ROWS_PER_BLOCK;
    for (int32_t row = row_begin; row < shape->m && row < block_end * TMAC_ROWS_PER_BLOCK; row++)
        for (int32_t t = 0; t < lut->n; t++) {
            int32_t sum = 0;
            for (int32_t i = step_begin * TERNARY_GROUPS; i < step_end * TERNARY_GROUPS; i++) {
                const int32_t s = i / TERNARY_GROUPS, g = i % TERNARY_GROUPS, r = row - row_begin;
                const int8_t *lo = lut->tables + ((int64_t)s * lut->n + t) * TERNARY_STEP_TABLES + g * 2 * TERNARY_TABLE_BYTES;
                const int8_t *hi = lo + TERNARY_TABLE_BYTES;
                const uint8_t code = slab[tmac_ternary_offset(block_end - block_begin, steps, r / TMAC_ROWS_PER_BLOCK, s, g) +
                                          r % TMAC_ROWS_PER_BLOCK];
                const int32_t entry = EXACT_SPLIT * hi[code & 0x7f] + lo[code & 0x7f];
                sum += code & 0x80 ? -entry : entry;
            }
            float *out = y + t * ldy + row;
            *out = step_begin ? *out + (float)sum : (float)sum;
            if (step_end == steps) *out = scales[row] * *out * lut->token_scales[t];
        }
}
