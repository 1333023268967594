/* y = W x for one token and a ternary slab with AVX-512: four row blocks share each load of a table. The tables of a panel
 * are built when its codes come next, and stay in the L1 cache while the slab's rows go by: products wait for memory, so
 * that this costs nothing, where tables of all columns, built before, cost a fifth of the product. */
#include "ternary_tables.h"

enum { PREFETCH_LINES = 3 }; /* of codes, per group whose table is built: memory does not wait meanwhile */

INLINE void build_panel(const int8_t *x, int32_t steps, const uint8_t *codes, int8_t *tables)
{
    for (int32_t s = 0; s < steps; s++, x += TERNARY_COLUMNS, tables += TERNARY_STEP_TABLES) {
        for (int i = 0; i < PREFETCH_LINES * TERNARY_GROUPS; i++, codes += 64)
            _mm_prefetch((const char *)codes, _MM_HINT_T0);
        build_step(x, tables);
    }
}

void tmac_ternary_gemv_avx512(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, float *y)
{
    const int32_t steps = tmac_ternary_steps(shape), n_blocks = block_end - block_begin;
    _Alignas(64) int8_t tables[TERNARY_PANEL_STEPS * TERNARY_STEP_TABLES];
    ternary_sum sums[TERNARY_SLAB_BLOCKS];
    ternary_panel p = {.codes = slab, .tables = tables, .table_bytes = TERNARY_STEP_TABLES};
    ternary_clear(sums, n_blocks);
    for (int32_t step = 0; step < steps; step += p.steps) {
        p.steps = at_most(TERNARY_PANEL_STEPS, steps - step);
        build_panel(lut->tables + step * TERNARY_COLUMNS, p.steps, p.codes, tables);
        for (int32_t b = 0; b < n_blocks; b += TERNARY_CHUNK_BLOCKS) {
            const int32_t blocks = at_most(TERNARY_CHUNK_BLOCKS, n_blocks - b);
            ternary_lookup(&p, sums + b, blocks);
            p.codes += (int64_t)p.steps * blocks * TERNARY_STEP_BYTES;
        }
    }
    for (int32_t b = 0; b < n_blocks; b++)
        ternary_store(shape, sums + b, scales, lut->token_scales[0], block_begin + b, 1, 1, y);
}
