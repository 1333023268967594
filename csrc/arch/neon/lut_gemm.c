/* y = W x for n tokens over one K panel with NEON: indices are made once per weight register and used for a register
 * block of 4 octets x 4 tokens (2 octets where tables are exact). All rows of a block go through a segment before the
 * next one: its tables, thousands of bytes apart from quad to quad, come from the L2 cache once. */
#include "fast.h"

#include <string.h>

enum { GEMM_TOKENS = 4 };

/* What a register block reads and writes: one row block, tokens [token, token + tokens). */
typedef struct {
    const tmac_shape *shape;
    const tmac_lut *lut;
    const uint8_t *segment; /* the block's weights at segment_begin */
    int32_t segment_begin, segment_end;
    int32_t token;
} gemm_block;

/* partial: float (GEMM_TOKENS, 64), the sums over the segments before; updated. */
INLINE void panel(const gemm_block *b, float *partial, const int bits, const int exact, const int fast,
                  const int tokens)
{
    const int octets = exact ? 2 : 4;
    const tmac_shape *shape = b->shape;
    const int32_t n = b->lut->n, steps = tmac_steps_per_segment(shape);
    const int64_t quad_stride = (int64_t)n * (1 + exact) * TABLE_BYTES, segment_bytes = tmac_segment_bytes(shape);
    const uint8_t *segment = b->segment;
    const int8_t *tables = quad_tables(b->lut, b->segment_begin * steps * 2, b->token);
    for (int32_t s = b->segment_begin; s < b->segment_end; s++) {
        const float *half_scales = b->lut->half_scales + (int64_t)s * n + b->token;
        const float *sums = b->lut->sums + (int64_t)s * n + b->token;
        for (int octet = 0; octet < OCTETS; octet += octets) {
            octet_total totals[GEMM_TOKENS * 4];
            const uint8_t *first = segment + octet * INDEX_BYTES;
            if (fast) segment_average(first, tables, quad_stride, steps, totals, bits, octets, tokens);
            else segment_lookup(first, tables, quad_stride, steps, totals, bits, exact, octets, tokens);
            for (int t = 0; t < tokens; t++)
                for (int i = 0; i < octets * 2; i++) {
                    const int r = octet * OCTET_ROWS + i * 4;
                    float *at = partial + t * TMAC_ROWS_PER_BLOCK + r;
                    vst1q_f32(at, add_segment(shape, segment + steps * bits * VECTOR_BYTES, r,
                                              totals[t * octets + i / 2].rows[i % 2], half_scales[t], sums[t],
                                              vld1q_f32(at)));
                }
        }
        segment += segment_bytes;
        tables += 2 * steps * quad_stride;
    }
}

typedef void panel_function(const gemm_block *b, float *partial);

#define PANEL(bits, tokens)                                                                                         \
    static void tmac_lut_gemm_##bits##x##tokens##_neon(const gemm_block *b, float *partial)                         \
    {                                                                                                               \
        if (b->lut->exact)                                                                                          \
            panel(b, partial, bits, 1, 0, tokens);                                                                  \
        else if (b->lut->fast)                                                                                      \
            panel(b, partial, bits, 0, 1, tokens);                                                                  \
        else                                                                                                        \
            panel(b, partial, bits, 0, 0, tokens);                                                                  \
    }
#define PANELS(bits) PANEL(bits, 1) PANEL(bits, 2) PANEL(bits, 4)
#define PANELS_OF(bits) {tmac_lut_gemm_##bits##x1_neon, tmac_lut_gemm_##bits##x2_neon, tmac_lut_gemm_##bits##x4_neon}
PANELS(1) PANELS(2) PANELS(3) PANELS(4) PANELS(5) PANELS(6) PANELS(7) PANELS(8)
static panel_function *const panels[TMAC_MAX_BITS][3] = {PANELS_OF(1), PANELS_OF(2), PANELS_OF(3), PANELS_OF(4),
                                                         PANELS_OF(5), PANELS_OF(6), PANELS_OF(7), PANELS_OF(8)};

/* log2 of the register block for the `left` last of n tokens: the smallest that covers them, reaching back over
 * tokens already done if n allows it, otherwise the largest that fits. */
static int block_log2(int32_t left, int32_t n)
{
    int log2 = 2;
    while (log2 > 0 && (1 << log2 > n || 1 << (log2 - 1) >= left)) log2--;
    return log2;
}

/* Rows of y to partial, for tokens [first, tokens) of the register block. row: the block's first. */
static void load_partial(const gemm_block *b, int first, int tokens, int32_t row, const float *y, int64_t ldy,
                         float *partial)
{
    memset(partial, 0, GEMM_TOKENS * TMAC_ROWS_PER_BLOCK * sizeof *partial);
    if (b->segment_begin == 0) return;
    const int32_t left = b->shape->m - row, rows = left < TMAC_ROWS_PER_BLOCK ? left : TMAC_ROWS_PER_BLOCK;
    for (int t = first; t < tokens; t++)
        memcpy(partial + t * TMAC_ROWS_PER_BLOCK, y + (b->token + t) * ldy + row, (size_t)rows * sizeof *partial);
}

static void store_partial(const gemm_block *b, int first, int tokens, int32_t row, const float *partial,
                          const uint8_t *row_tails, float *y, int64_t ldy)
{
    const int last = b->segment_end == tmac_n_segments(b->shape);
    for (int t = first; t < tokens; t++)
        for (int32_t r = 0; r < TMAC_ROWS_PER_BLOCK; r += 4) {
            float32x4_t value = vld1q_f32(partial + t * TMAC_ROWS_PER_BLOCK + r);
            if (last) value = finish_rows(b->shape, row_tails, b->lut, b->token + t, r, value);
            store_rows(y + (b->token + t) * ldy + row + r, value, b->shape->m - row - r);
        }
}

void tmac_lut_gemm_neon(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                        int32_t block_end, int32_t segment_begin, int32_t segment_end, float *y, int64_t ldy)
{
    const int64_t block_bytes = tmac_block_bytes(shape), segment_bytes = tmac_segment_bytes(shape);
    for (int32_t block = block_begin; block < block_end; block++) {
        const uint8_t *at = weights + block * block_bytes;
        const int32_t row = block * TMAC_ROWS_PER_BLOCK;
        gemm_block b = {shape, lut, at + segment_begin * segment_bytes, segment_begin, segment_end, 0};
        for (int32_t token = 0; token < lut->n;) {
            const int log2 = block_log2(lut->n - token, lut->n), tokens = 1 << log2;
            b.token = lut->n - token < tokens ? lut->n - tokens : token;
            const int first = token - b.token;
            float partial[GEMM_TOKENS * TMAC_ROWS_PER_BLOCK];
            load_partial(&b, first, tokens, row, y, ldy, partial);
            panels[shape->bits - 1][log2](&b, partial);
            store_partial(&b, first, tokens, row, partial, at + tmac_n_segments(shape) * segment_bytes, y, ldy);
            token = b.token + tokens;
        }
    }
}
