/* y = W x for n tokens over one K panel with AVX2: indices are made once per weight register and used for a register
 * block of one tile x 4 tokens. All tiles of a row block go through a segment before the next one: its tables, thousands
 * of bytes apart from quad to quad, come from the L2 cache once. Blocks of 2 tokens where an octet needs two accumulators
 * were 10 to 20 % slower; blocks of 8 tokens gained 2 % at 2 bits and lost 10 % at 7 and 8. */
#include "avx2.h"

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

/* What one segment contributes besides its integers: float (tokens) each, and the group tail where group_size > 0. */
typedef struct {
    const float *half_scales, *sums;
    const uint8_t *tail;
    float zero; /* where no zero points are stored */
    int grouped, has_zeros;
} segment_floats;

/* The segment's integers of one tile enter the floats. partial: at the tile's first row of the first token. */
INLINE void add_segment(const segment_floats *f, int tile, __m256i totals[][OCTETS_PER_TILE], float *restrict partial,
                        const int bits, const int tokens)
{
    UNROLL for (int o = 0; o < OCTETS_PER_TILE; o++)
    {
        const int r = tile * TMAC_ROWS_PER_TILE + o * OCTET_ROWS;
        const __m256 zero = f->has_zeros && f->grouped ? group_tail(f->tail, 1, r) : _mm256_set1_ps(f->zero);
        const __m256 constant = _mm256_sub_ps(_mm256_set1_ps(plane_middle(bits)), zero);
        const __m256 scale = f->grouped ? group_tail(f->tail, 0, r) : zero;
        UNROLL for (int t = 0; t < tokens; t++)
        {
            float *at = partial + t * TMAC_ROWS_PER_BLOCK + o * OCTET_ROWS;
            const __m256 half_scale = _mm256_set1_ps(f->half_scales[t]), sum = _mm256_set1_ps(f->sums[t]);
            const __m256 entries = _mm256_cvtepi32_ps(totals[t][o]);
            __m256 value = _mm256_load_ps(at);
            if (f->grouped)
                value = _mm256_fmadd_ps(scale, _mm256_fmadd_ps(entries, half_scale, _mm256_mul_ps(constant, sum)), value);
            else
                value = _mm256_fmadd_ps(entries, half_scale, value);
            _mm256_store_ps(at, value);
        }
    }
}

/* Integer sums of one tile over some steps. at: the tile's indices in the first. tables: of the first quad and token. */
INLINE void steps_lookup(const uint8_t *at, const int8_t *tables, int64_t quad_stride, int32_t steps,
                         __m256i totals[][OCTETS_PER_TILE], const int bits, const int exact, const int tokens)
{
    octet_sum sums[GEMM_TOKENS][OCTETS_PER_TILE];
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int o = 0; o < OCTETS_PER_TILE; o++) sums[t][o].a = sums[t][o].b = _mm256_setzero_si256();
    for (int32_t step = 0; step < steps; step++) {
        if (exact) {
            step_lookup_exact(at, tables, quad_stride, sums, bits, tokens);
        } else {
            quad_lookup(at, tables, sums, bits, tokens);
            quad_lookup(at + quad_bytes(bits), tables + quad_stride, sums, bits, tokens);
        }
        at += 2 * quad_bytes(bits);
        tables += 2 * quad_stride;
    }
    UNROLL for (int t = 0; t < tokens; t++) widen(sums[t], totals[t], bits, exact);
}

/* The same over a whole segment, however often the accumulators must be emptied. */
INLINE void segment_lookup(const uint8_t *at, const int8_t *tables, int64_t quad_stride, int32_t steps,
                           __m256i totals[][OCTETS_PER_TILE], const int bits, const int exact, const int tokens)
{
    const int limit = widen_steps(bits, exact);
    if (limit == MAX_STEPS || steps <= limit) {
        steps_lookup(at, tables, quad_stride, steps, totals, bits, exact, tokens);
        return;
    }
    __m256i second[GEMM_TOKENS][OCTETS_PER_TILE];
    steps_lookup(at, tables, quad_stride, limit, totals, bits, exact, tokens);
    steps_lookup(at + limit * bits * VECTOR_BYTES, tables + limit * 2 * quad_stride, quad_stride, steps - limit,
                 second, bits, exact, tokens);
    for (int t = 0; t < tokens; t++)
        for (int o = 0; o < OCTETS_PER_TILE; o++) totals[t][o] = _mm256_add_epi32(totals[t][o], second[t][o]);
}

/* partial: float (GEMM_TOKENS, 64), the sums over the segments before; updated. */
INLINE void panel(const gemm_block *b, float *restrict partial, const int bits, const int exact, const int tokens)
{
    const int32_t n = b->lut->n, steps = tmac_steps_per_segment(b->shape);
    const int64_t quad_stride = (int64_t)n * (1 + exact) * TABLE_BYTES, segment_bytes = tmac_segment_bytes(b->shape);
    const int64_t first = (int64_t)b->segment_begin * n + b->token;
    const uint8_t *segment = b->segment;
    const int8_t *tables = quad_tables(b->lut, b->segment_begin * steps * 2, b->token);
    segment_floats f = {b->lut->half_scales + first, b->lut->sums + first, segment + steps * bits * VECTOR_BYTES,
                        b->shape->zero, b->shape->group_size != 0, b->shape->has_zeros};
    for (int32_t s = b->segment_begin; s < b->segment_end; s++) {
        for (int tile = 0; tile < TILES_PER_BLOCK; tile++) {
            __m256i totals[GEMM_TOKENS][OCTETS_PER_TILE];
            segment_lookup(segment + tile * bits * INDEX_BYTES, tables, quad_stride, steps, totals, bits, exact, tokens);
            add_segment(&f, tile, totals, partial + tile * TMAC_ROWS_PER_TILE, bits, tokens);
        }
        segment += segment_bytes;
        tables += 2 * steps * quad_stride;
        f.tail += segment_bytes;
        f.half_scales += n;
        f.sums += n;
    }
}

typedef void panel_function(const gemm_block *b, float *partial);

#define PANEL(bits, tokens)                                                                                         \
    static void tmac_lut_gemm_##bits##x##tokens##_avx2(const gemm_block *b, float *partial)                         \
    {                                                                                                               \
        if (b->lut->exact)                                                                                          \
            panel(b, partial, bits, 1, tokens);                                                                     \
        else                                                                                                        \
            panel(b, partial, bits, 0, tokens);                                                                     \
    }
#define PANELS(bits) PANEL(bits, 1) PANEL(bits, 2) PANEL(bits, 4)
#define PANELS_OF(bits) {tmac_lut_gemm_##bits##x1_avx2, tmac_lut_gemm_##bits##x2_avx2, tmac_lut_gemm_##bits##x4_avx2}
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
    const int last = b->segment_end == tmac_n_segments(b->shape), grouped = b->shape->group_size != 0;
    for (int t = first; t < tokens; t++)
        for (int32_t r = 0; r < TMAC_ROWS_PER_BLOCK; r += OCTET_ROWS) {
            float *to = y + (b->token + t) * ldy + row + r;
            __m256 value = _mm256_load_ps(partial + t * TMAC_ROWS_PER_BLOCK + r);
            if (last && !grouped) value = finish_rows(b->shape, row_tails, r, value, b->lut->totals[b->token + t]);
            if (last && b->lut->exact) value = _mm256_mul_ps(value, _mm256_set1_ps(b->lut->token_scales[b->token + t]));
            if (b->shape->m - row - r >= OCTET_ROWS) _mm256_storeu_ps(to, value);
            else _mm256_maskstore_ps(to, first_lanes(b->shape->m - row - r), value);
        }
}

void tmac_lut_gemm_avx2(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
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
            _Alignas(32) float partial[GEMM_TOKENS * TMAC_ROWS_PER_BLOCK];
            load_partial(&b, first, tokens, row, y, ldy, partial);
            panels[shape->bits - 1][log2](&b, partial);
            store_partial(&b, first, tokens, row, partial, at + tmac_n_segments(shape) * segment_bytes, y, ldy);
            token = b.token + tokens;
        }
    }
}
