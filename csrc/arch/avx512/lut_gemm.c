/* y = W x for n tokens over one K panel with AVX-512: indices are made once per weight vector and used for a register
 * block of 2 tiles x 8 tokens. */
#include "avx512.h"

#include <string.h>

enum { GEMM_TILES = 2, GEMM_TOKENS = 8 };

/* A register block: GEMM_TILES tiles of one row block x tokens [token, token + tokens). */
typedef struct {
    const tmac_shape *shape;
    const tmac_lut *lut;
    const uint8_t *segment, *row_tail; /* the row block's weights at segment_begin, and its row tail */
    float *y;                          /* first row of tile, token */
    int64_t ldy;
    int32_t segment_begin, segment_end, tile, token, tokens;
    __mmask16 rows[GEMM_TILES]; /* rows inside m */
} gemm_block;

/* One vector of GEMM_TILES tiles: both nibbles for every token. The nibbles are planes low_plane and high_plane; high
 * is the way from the tables of the low nibble's quad to those of the high one's. */
INLINE void vector_lookup(const uint8_t *vector, const int8_t *tables, const int64_t high, const int low_plane,
                          const int high_plane, tile_sum sums[GEMM_TILES][GEMM_TOKENS], const int bits, const int exact,
                          const int tokens)
{
    __m512i low_indices[GEMM_TILES], high_indices[GEMM_TILES];
    UNROLL for (int i = 0; i < GEMM_TILES; i++)
    {
        __m512i w = _mm512_load_si512(vector + i * TILE_BYTES);
        low_indices[i] = low_index(w), high_indices[i] = high_index(w);
    }
    UNROLL for (int t = 0; t < tokens; t++)
    {
        const int8_t *table = tables + t * (1 + exact) * TABLE_BYTES;
        __m512i lo = _mm512_load_si512(table), hi = exact ? _mm512_load_si512(table + TABLE_BYTES) : lo;
        UNROLL for (int i = 0; i < GEMM_TILES; i++)
            accumulate(&sums[i][t], low_indices[i], lo, hi, low_plane, bits, exact);
        if (low_plane == high_plane) {
            lo = _mm512_load_si512(table + high);
            hi = exact ? _mm512_load_si512(table + high + TABLE_BYTES) : lo;
        }
        UNROLL for (int i = 0; i < GEMM_TILES; i++)
            accumulate(&sums[i][t], high_indices[i], lo, hi, high_plane, bits, exact);
        __asm__ volatile("" ::: "memory"); /* keeps later tables out of registers: all are taken by accumulators */
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
    const float common = plane_middle(bits) - shape->zero;
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
                const int plane = shared ? v : v / 2 * 2;
                const int8_t *quad_0 = tables, *quad_1 = tables + quad_stride;
                vector_lookup(at + v * VECTOR_BYTES + b->tile * TILE_BYTES, shared || v % 2 == 0 ? quad_0 : quad_1,
                              quad_stride, plane, plane + !shared, sums, bits, exact, tokens);
            }
            at += bits * VECTOR_BYTES;
            tables += 2 * quad_stride;
        }
        const float *half_scales = lut->half_scales + (int64_t)s * n + b->token;
        const float *token_sums = lut->sums + (int64_t)s * n + b->token;
        __m512 scales[GEMM_TILES], constants[GEMM_TILES];
        UNROLL for (int i = 0; i < GEMM_TILES; i++)
        {
            scales[i] = grouped ? group_tail(at, 0, b->tile + i) : middle;
            constants[i] = grouped && has_zeros ? _mm512_sub_ps(middle, group_tail(at, 1, b->tile + i)) : middle;
        }
        UNROLL for (int t = 0; t < tokens; t++)
        {
            const __m512 half_scale = _mm512_set1_ps(half_scales[t]), token_sum = _mm512_set1_ps(token_sums[t]);
            const __m512 offset = _mm512_set1_ps(common * token_sums[t]);
            UNROLL for (int i = 0; i < GEMM_TILES; i++)
            {
                float *sum = partial + (t * GEMM_TILES + i) * TMAC_ROWS_PER_TILE;
                __m512 entries = sum_to_float(sums[i][t], bits, exact), value = _mm512_load_ps(sum);
                if (!grouped)
                    value = _mm512_fmadd_ps(entries, half_scale, value);
                else if (has_zeros)
                    value = _mm512_fmadd_ps(
                        scales[i], _mm512_fmadd_ps(entries, half_scale, _mm512_mul_ps(constants[i], token_sum)), value);
                else
                    value = _mm512_fmadd_ps(scales[i], _mm512_fmadd_ps(entries, half_scale, offset), value);
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
        if (!b->lut->exact)                                                                                         \
            panel(b, partial, bits, 0, tokens);                                                                     \
        else if (bits <= EXACT_SHARED_BITS || tokens < GEMM_TOKENS) /* see block_log2 */                            \
            panel(b, partial, bits, 1, tokens);                                                                     \
    }
#define PANELS(bits) PANEL(bits, 1) PANEL(bits, 2) PANEL(bits, 4) PANEL(bits, 8)
#define PANELS_OF(bits)                                                                                             \
    {tmac_lut_gemm_##bits##x1_avx512, tmac_lut_gemm_##bits##x2_avx512, tmac_lut_gemm_##bits##x4_avx512,             \
     tmac_lut_gemm_##bits##x8_avx512}
PANELS(1) PANELS(2) PANELS(3) PANELS(4) PANELS(5) PANELS(6) PANELS(7) PANELS(8)
static panel_function *const panels[TMAC_MAX_BITS][4] = {PANELS_OF(1), PANELS_OF(2), PANELS_OF(3), PANELS_OF(4),
                                                         PANELS_OF(5), PANELS_OF(6), PANELS_OF(7), PANELS_OF(8)};

/* log2 of the register block for the `left` last of n tokens: the smallest that covers them, reaching back over
 * tokens already done if n allows it, otherwise the largest that fits. Two accumulators per tile allow only half. */
static int block_log2(int32_t left, int32_t n, int bits, int exact)
{
    int log2 = exact && bits > EXACT_SHARED_BITS ? 2 : 3;
    while (log2 > 0 && (1 << log2 > n || 1 << (log2 - 1) >= left)) log2--;
    return log2;
}

/* Rows of y to partial (zeros before the first segment), for tokens from `first` on; others are not used. */
INLINE void load_partial(const gemm_block *b, int first, float *partial)
{
    if (b->segment_begin == 0) first = b->tokens;
    for (int i = 0; i < GEMM_TILES; i++)
        for (int t = 0; t < b->tokens; t++)
            _mm512_store_ps(partial + (t * GEMM_TILES + i) * TMAC_ROWS_PER_TILE,
                            t < first ? _mm512_setzero_ps()
                                      : _mm512_maskz_loadu_ps(b->rows[i], b->y + t * b->ldy + i * TMAC_ROWS_PER_TILE));
}

/* And back; after the last segment the rows are finished (kernels.h). */
INLINE void store_partial(const gemm_block *b, int first, const float *partial)
{
    const int last = b->segment_end == tmac_n_segments(b->shape), by_row = last && b->shape->group_size == 0;
    for (int i = 0; i < GEMM_TILES; i++)
        for (int t = first; t < b->tokens; t++) {
            __m512 value = _mm512_load_ps(partial + (t * GEMM_TILES + i) * TMAC_ROWS_PER_TILE);
            if (by_row) value = finish_rows(b->shape, b->row_tail, b->tile + i, value, b->lut->totals[b->token + t]);
            if (last && b->lut->exact) value = _mm512_mul_ps(value, _mm512_set1_ps(b->lut->token_scales[b->token + t]));
            _mm512_mask_storeu_ps(b->y + t * b->ldy + i * TMAC_ROWS_PER_TILE, b->rows[i], value);
        }
}

void tmac_lut_gemm_avx512(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                          int32_t block_end, int32_t segment_begin, int32_t segment_end, float *y, int64_t ldy)
{
    const int64_t block_bytes = tmac_block_bytes(shape), segment_bytes = tmac_segment_bytes(shape);
    const int32_t n = lut->n;
    for (int32_t block = block_begin; block < block_end; block++) {
        const uint8_t *at = weights + block * block_bytes;
        gemm_block b = {.shape = shape, .lut = lut, .segment = at + segment_begin * segment_bytes, .ldy = ldy,
                        .row_tail = at + tmac_n_segments(shape) * segment_bytes, .segment_begin = segment_begin,
                        .segment_end = segment_end};
        for (int32_t done = 0; done < n; done = b.token + b.tokens) {
            const int log2 = block_log2(n - done, n, shape->bits, lut->exact);
            b.tokens = 1 << log2;
            b.token = n - done < b.tokens ? n - b.tokens : done;
            for (b.tile = 0; b.tile < TILES_PER_BLOCK; b.tile += GEMM_TILES) {
                const int32_t row = block * TMAC_ROWS_PER_BLOCK + b.tile * TMAC_ROWS_PER_TILE;
                _Alignas(64) float partial[GEMM_TOKENS * GEMM_TILES * TMAC_ROWS_PER_TILE];
                for (int i = 0; i < GEMM_TILES; i++) b.rows[i] = rows_inside(shape->m, row + i * TMAC_ROWS_PER_TILE);
                b.y = y + b.token * ldy + row;
                load_partial(&b, done - b.token, partial);
                panels[shape->bits - 1][log2](&b, partial);
                store_partial(&b, done - b.token, partial);
            }
        }
    }
}
