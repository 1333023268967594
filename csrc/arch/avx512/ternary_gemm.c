/* y = W x for n tokens over one K panel of a ternary slab with AVX-512: two row blocks by two tokens at a time. */
#include "ternary.h"

enum { GEMM_BLOCKS = 2, GEMM_TOKENS = 2 };

typedef struct {
    const tmac_shape *shape;
    const uint8_t *slab;
    const float *scales;
    const tmac_lut *lut;
    int32_t block_begin, blocks; /* of the slab */
    int32_t step_begin, step_end;
    float *y;
    int64_t ldy;
} ternary_gemm;

/* Row blocks `block`.. of the slab, tokens `token`..; both of one chunk. */
INLINE void multiply(const ternary_gemm *m, int32_t block, int32_t token, const int blocks, const int tokens)
{
    const int32_t steps = tmac_ternary_steps(m->shape), n = m->lut->n;
    const int32_t chunk_blocks = m->blocks - block / TERNARY_CHUNK_BLOCKS * TERNARY_CHUNK_BLOCKS;
    ternary_sum sums[GEMM_BLOCKS * GEMM_TOKENS];
    ternary_panel p = {.group_bytes = chunk_blocks < TERNARY_CHUNK_BLOCKS ? chunk_blocks * 64 : 256,
                       .token_bytes = TERNARY_STEP_TABLES, .step_bytes = (int64_t)n * TERNARY_STEP_TABLES};
    UNROLL for (int i = 0; i < blocks * tokens; i++)
        UNROLL for (int j = 0; j < 4; j++) sums[i].lane[j] = _mm512_setzero_si512();
    for (int32_t step = m->step_begin; step < m->step_end; step += p.steps) {
        p.steps = m->step_end - step < TERNARY_PANEL_STEPS ? m->step_end - step : TERNARY_PANEL_STEPS;
        p.codes = m->slab + tmac_ternary_offset(m->blocks, steps, block, step, 0);
        p.tables = m->lut->tables + ((int64_t)step * n + token) * TERNARY_STEP_TABLES;
        ternary_lookup(&p, sums, blocks, tokens);
    }
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int b = 0; b < blocks; b++)
            ternary_store(m->shape, sums + t * blocks + b, m->scales, m->lut->token_scales[token + t],
                          m->block_begin + block + b, m->step_begin == 0, m->step_end == steps,
                          m->y + (token + t) * m->ldy);
}

void tmac_ternary_gemm_avx512(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, int32_t step_begin, int32_t step_end, float *y,
                              int64_t ldy)
{
    const ternary_gemm m = {shape, slab, scales, lut, block_begin, block_end - block_begin, step_begin, step_end, y, ldy};
    for (int32_t b = 0; b < m.blocks; b += GEMM_BLOCKS) {
        const int two = m.blocks - b >= GEMM_BLOCKS;
        int32_t t = 0;
        for (; t + GEMM_TOKENS <= lut->n; t += GEMM_TOKENS)
            if (two) multiply(&m, b, t, GEMM_BLOCKS, GEMM_TOKENS);
            else multiply(&m, b, t, 1, GEMM_TOKENS);
        if (t == lut->n) continue;
        if (two) multiply(&m, b, t, GEMM_BLOCKS, 1);
        else multiply(&m, b, t, 1, 1);
    }
}
