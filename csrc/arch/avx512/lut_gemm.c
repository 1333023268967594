/* y = W x for n tokens over one K panel with AVX-512: indices are made once per weight vector and used for a register
 * block of 2 tiles x 8 tokens. */
#include "avx512.h"

#include <string.h>

enum { GEMM_TILES = 2, GEMM_TOKENS = 8 };

/* What a register block reads and writes: GEMM_TILES tiles of one row block, tokens [token, token + tokens). */
typedef struct {
    const tmac_shape *shape;
    const tmac_lut *lut;
    const uint8_t *segment; /* the block's weights at segment_begin */
    int32_t segment_begin, segment_end;
    int32_t tile, token;
} gemm_block;

/* One nibble of one vector: look up its plane for every token of the register block. */
INLINE void nibble_lookup(const uint8_t *vector, const int high, const int8_t *tables, const int p,
                          tile_sum sums[GEMM_TILES][GEMM_TOKENS], const int bits, const int exact, const int tokens)
{
    __m512i index[GEMM_TILES];
    UNROLL for (int i = 0; i < GEMM_TILES; i++)
    {
        __m512i w = _mm512_load_si512(vector + i * TILE_BYTES);
        index[i] = high ? high_index(w) : low_index(w);
    }
    UNROLL for (int t = 0; t < tokens; t++)
    {
        const int8_t *table = tables + t * (1 + exact) * TABLE_BYTES;
        __m512i lo = _mm512_load_si512(table), hi = exact ? _mm512_load_si512(table + TABLE_BYTES) : lo;
        UNROLL for (int i = 0; i < GEMM_TILES; i++) accumulate(&sums[i][t], index[i], lo, hi, p, bits, exact);
    }
}

/* partial: float (GEMM_TOKENS, GEMM_TILES, 16), the sums over the segments before; updated. */
INLINE void panel(const gemm_block *b, float *partial, const int bits, const int exact, const int tokens)
{
    const tmac_shape *shape = b->shape;
    const tmac_lut *lut = b->lut;
    const int32_t n = lut->n, steps = tmac_steps_per_segment(shape);
    const int64_t quad_stride = (int64_t)n * (1 + exact) * TABLE_BYTES;
    const int has_zeros = shape->has_zeros, grouped = shape->group_size != 0;
    const __m512 middle = _mm512_set1_ps(plane_middle(bits));
    const uint8_t *at = b->segment;
    const int8_t *tables = quad_tables(lut, b->segment_begin * steps * 2, b->token);
    for (int32_t s = b->segment_begin; s < b->segment_end; s++) {
        tile_sum sums[GEMM_TILES][GEMM_TOKENS];
        UNROLL for (int i = 0; i < GEMM_TILES; i++)
            UNROLL for (int t = 0; t < tokens; t++) sums[i][t].lo = sums[i][t].hi = _mm512_setzero_si512();

        for (int32_t step = 0; step < steps; step++) {
            UNROLL for (int v = 0; v < bits; v++)
            {
                const int shared = bits % 2 && v == bits - 1; /* one plane of both quads, otherwise two planes of one */
                const int plane = shared ? v : v / 2 * 2, quad = shared ? 0 : v % 2;
                const uint8_t *vector = at + v * VECTOR_BYTES + b->tile * TILE_BYTES;
                nibble_lookup(vector, 0, tables + quad * quad_stride, plane, sums, bits, exact, tokens);
                nibble_lookup(vector, 1, tables + (shared ? 1 : quad) * quad_stride, plane + !shared, sums, bits, exact,
                              tokens);
            }
            at += bits * VECTOR_BYTES;
            tables += 2 * quad_stride;
        }
        const float *half_scales = lut->half_scales + (int64_t)s * n + b->token;
        const float *token_sums = lut->sums + (int64_t)s * n + b->token;
        UNROLL for (int i = 0; i < GEMM_TILES; i++)
        {
            __m512 scale = _mm512_setzero_ps(), constant = _mm512_sub_ps(middle, _mm512_set1_ps(shape->zero));
            if (grouped) scale = group_tail(at, 0, b->tile + i);
            if (grouped && has_zeros) constant = _mm512_sub_ps(middle, group_tail(at, 1, b->tile + i));
            UNROLL for (int t = 0; t < tokens; t++)
            {
                float *sum = partial + (t * GEMM_TILES + i) * TMAC_ROWS_PER_TILE;
                __m512 entries = sum_to_float(sums[i][t], bits, exact), half_scale = _mm512_set1_ps(half_scales[t]);
                __m512 value = _mm512_load_ps(sum);
                if (grouped) {
                    __m512 offset = _mm512_mul_ps(constant, _mm512_set1_ps(token_sums[t]));
                    value = _mm512_fmadd_ps(scale, _mm512_fmadd_ps(entries, half_scale, offset), value);
                } else
                    value = _mm512_fmadd_ps(entries, half_scale, value);
                _mm512_store_ps(sum, value);
            }
        }
        at += grouped ? 2 * TMAC_ROWS_PER_BLOCK * (1 + has_zeros) : 0;
    }
}

typedef void panel_function(const gemm_block *b, float *partial);

#define PANEL(bits, tokens)                                                                                         \
    static void tmac_lut_gemm_##bits##x##tokens##_avx512(const gemm_block *b, float *partial)                       \
    {                                                                                                               \
        if (b->lut->exact)                                                                                          \
            panel(b, partial, bits, 1, tokens);                                                                     \
        else                                                                                                        \
            panel(b, partial, bits, 0, tokens);                                                                     \
    }
#define PANELS(bits) PANEL(bits, 1) PANEL(bits, 2) PANEL(bits, 4) PANEL(bits, 8)
#define PANELS_OF(bits)                                                                                             \
    {tmac_lut_gemm_##bits##x1_avx512, tmac_lut_gemm_##bits##x2_avx512, tmac_lut_gemm_##bits##x4_avx512,             \
     tmac_lut_gemm_##bits##x8_avx512}
PANELS(1) PANELS(2) PANELS(3) PANELS(4) PANELS(5) PANELS(6) PANELS(7) PANELS(8)
static panel_function *const panels[TMAC_MAX_BITS][4] = {PANELS_OF(1), PANELS_OF(2), PANELS_OF(3), PANELS_OF(4),
                                                         PANELS_OF(5), PANELS_OF(6), PANELS_OF(7), PANELS_OF(8)};

/* log2 of the register block for the `left` last of n tokens: the smallest that covers them, reaching back over
 * tokens already done if n allows it, otherwise the largest that fits. */
static int block_log2(int32_t left, int32_t n)
{
    int log2 = 3;
    while (log2 > 0 && (1 << log2 > n || 1 << (log2 - 1) >= left)) log2--;
    return log2;
}

/* Rows of y to or from partial, for tokens [first, tokens) of the register block. */
static void load_partial(const gemm_block *b, int first, int tokens, int32_t row, const float *y, int64_t ldy,
                         float *partial)
{
    memset(partial, 0, GEMM_TOKENS * GEMM_TILES * TMAC_ROWS_PER_TILE * sizeof *partial);
    if (b->segment_begin == 0) return;
    for (int t = first; t < tokens; t++)
        for (int i = 0; i < GEMM_TILES; i++) {
            const int32_t r = row + i * TMAC_ROWS_PER_TILE;
            const float *from = y + (b->token + t) * ldy + r;
            _mm512_store_ps(partial + (t * GEMM_TILES + i) * TMAC_ROWS_PER_TILE,
                            _mm512_maskz_loadu_ps(rows_inside(b->shape->m, r), from));
        }
}

static void store_partial(const gemm_block *b, int first, int tokens, int32_t row, const float *partial,
                          const uint8_t *row_tails, float *y, int64_t ldy)
{
    const int last = b->segment_end == tmac_n_segments(b->shape), grouped = b->shape->group_size != 0;
    for (int t = first; t < tokens; t++)
        for (int i = 0; i < GEMM_TILES; i++) {
            const int32_t r = row + i * TMAC_ROWS_PER_TILE;
            __m512 value = _mm512_load_ps(partial + (t * GEMM_TILES + i) * TMAC_ROWS_PER_TILE);
            if (last && !grouped) value = finish_rows(b->shape, row_tails, b->tile + i, value, b->lut->totals[b->token + t]);
            if (last && b->lut->exact) value = _mm512_mul_ps(value, _mm512_set1_ps(b->lut->token_scales[b->token + t]));
            _mm512_mask_storeu_ps(y + (b->token + t) * ldy + r, rows_inside(b->shape->m, r), value);
        }
}

void tmac_lut_gemm_avx512(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                          int32_t block_end, int32_t segment_begin, int32_t segment_end, float *y, int64_t ldy)
{
    const int64_t block_bytes = tmac_block_bytes(shape), segment_bytes = tmac_segment_bytes(shape);
    for (int32_t block = block_begin; block < block_end; block++) {
        const uint8_t *at = weights + block * block_bytes;
        gemm_block b = {shape, lut, at + segment_begin * segment_bytes, segment_begin, segment_end, 0, 0};
        for (int32_t token = 0; token < lut->n;) {
            const int log2 = block_log2(lut->n - token, lut->n), tokens = 1 << log2;
            b.token = lut->n - token < tokens ? lut->n - tokens : token;
            const int first = token - b.token;
            for (b.tile = 0; b.tile < TILES_PER_BLOCK; b.tile += GEMM_TILES) {
                const int32_t row = block * TMAC_ROWS_PER_BLOCK + b.tile * TMAC_ROWS_PER_TILE;
                _Alignas(64) float partial[GEMM_TOKENS * GEMM_TILES * TMAC_ROWS_PER_TILE];
                load_partial(&b, first, tokens, row, y, ldy, partial);
                panels[shape->bits - 1][log2](&b, partial);
                store_partial(&b, first, tokens, row, partial, at + tmac_n_segments(shape) * segment_bytes, y, ldy);
            }
            token = b.token + tokens;
        }
    }
}
