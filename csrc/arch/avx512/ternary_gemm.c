/* y = W x for n tokens and a ternary slab with AVX-512. The tables of one token and two panels stay in the L1 cache
 * while the slab's rows, whose codes of two panels stay in the L2 cache, go by; y holds the sums between panels.
 *
 * Tried, and slower: two row blocks by two tokens (125 to 155 GMAC/s on one core instead of 165: tables are loaded
 * twice as often), all tokens for each chunk (115: tables come from the L2 cache). */
#include "ternary.h"

enum { GEMM_STEPS = 2 * TERNARY_PANEL_STEPS };

void tmac_ternary_gemm_avx512(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, void *scratch, float *y, int64_t ldy)
{
    (void)scratch;
    const int32_t steps = tmac_ternary_steps(shape), n_blocks = block_end - block_begin, n = lut->n;
    ternary_panel p = {.table_bytes = (int64_t)n * TERNARY_STEP_TABLES};
    for (int32_t begin = 0, end; begin < steps; begin = end) {
        end = at_most(steps, begin + GEMM_STEPS);
        for (int32_t t = 0; t < n; t++)
            for (int32_t b = 0; b < n_blocks; b += TERNARY_CHUNK_BLOCKS) {
                const int32_t blocks = at_most(TERNARY_CHUNK_BLOCKS, n_blocks - b);
                ternary_sum sums[TERNARY_CHUNK_BLOCKS];
                ternary_clear(sums, TERNARY_CHUNK_BLOCKS);
                for (int32_t step = begin; step < end; step += p.steps) {
                    p.steps = at_most(TERNARY_PANEL_STEPS, end - step);
                    p.codes = slab + tmac_ternary_offset(n_blocks, steps, b, step, 0);
                    p.tables = lut->tables + ((int64_t)step * n + t) * TERNARY_STEP_TABLES;
                    ternary_lookup(&p, sums, blocks);
                }
                for (int32_t i = 0; i < blocks; i++)
                    ternary_store(shape, sums + i, scales, lut->token_scales[t], block_begin + b + i, begin == 0,
                                  end == steps, y + t * ldy);
            }
    }
}
