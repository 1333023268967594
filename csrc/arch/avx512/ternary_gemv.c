/* y = W x for one token and a ternary slab with AVX-512: four row blocks share each load of a table, and the tables of a
 * panel stay in the L1 cache while the slab's rows go by. */
#include "ternary.h"

void tmac_ternary_gemv_avx512(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, float *y)
{
    const int32_t steps = tmac_ternary_steps(shape), blocks = block_end - block_begin;
    ternary_sum sums[TERNARY_SLAB_BLOCKS];
    ternary_panel p = {.codes = slab, .tables = lut->tables, .step_bytes = TERNARY_STEP_TABLES};
    for (int32_t b = 0; b < blocks; b++)
        UNROLL for (int i = 0; i < 4; i++) sums[b].lane[i] = _mm512_setzero_si512();
    for (int32_t step = 0; step < steps; step += p.steps, p.tables += p.steps * TERNARY_STEP_TABLES) {
        p.steps = steps - step < TERNARY_PANEL_STEPS ? steps - step : TERNARY_PANEL_STEPS;
        for (int32_t b = 0; b < blocks; b += TERNARY_CHUNK_BLOCKS) {
            const int32_t left = blocks - b;
            switch (left) {
            case 1: p.group_bytes = 64, ternary_lookup(&p, sums + b, 1, 1); break;
            case 2: p.group_bytes = 128, ternary_lookup(&p, sums + b, 2, 1); break;
            case 3: p.group_bytes = 192, ternary_lookup(&p, sums + b, 3, 1); break;
            default: p.group_bytes = 256, ternary_lookup(&p, sums + b, 4, 1);
            }
            p.codes += p.steps * TERNARY_GROUPS * p.group_bytes;
        }
    }
    for (int32_t b = 0; b < blocks; b++)
        ternary_store(shape, sums + b, scales, lut->token_scales[0], block_begin + b, 1, 1, y);
}
