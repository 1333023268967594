/* y = W x for one token and a ternary slab with AVX-512: four row blocks share each load of a table, and the tables of
 * a panel stay in the L1 cache while the slab's rows go by. */
#include "ternary.h"

void tmac_ternary_gemv_avx512(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, float *y)
{
    const int32_t steps = tmac_ternary_steps(shape), n_blocks = block_end - block_begin;
    ternary_sum sums[TERNARY_SLAB_BLOCKS];
    ternary_panel p = {.codes = slab, .tables = lut->tables, .table_bytes = TERNARY_STEP_TABLES};
    ternary_clear(sums, n_blocks);
    for (int32_t step = 0; step < steps; step += p.steps, p.tables += p.steps * p.table_bytes) {
        p.steps = at_most(TERNARY_PANEL_STEPS, steps - step);
        for (int32_t b = 0; b < n_blocks; b += TERNARY_CHUNK_BLOCKS) {
            const int32_t blocks = at_most(TERNARY_CHUNK_BLOCKS, n_blocks - b);
            ternary_lookup(&p, sums + b, blocks);
            p.codes += (int64_t)p.steps * blocks * TERNARY_STEP_BYTES;
        }
    }
    for (int32_t b = 0; b < n_blocks; b++)
        ternary_store(shape, sums + b, scales, lut->token_scales[0], block_begin + b, 1, 1, y);
}
