/* y = W x for n tokens over one K panel with AVX2. The nibbles of a segment of 64 rows are split into index registers
 * once, in the L1 cache, and serve a block of tokens one after the other: a lookup then is vpshufb with its index in
 * memory, vpmaddubsw and vpaddw, three instructions, and each table is loaded once. Blocks of 1 tile x 4 tokens or
 * 1 tile x 8 tokens in registers need 4.5 instructions per lookup and read every table four times. Four vector units
 * (Zen 3) thus bound a product at 128/b * 4/3 multiply-adds per cycle for b even bits. */
#include "avx2.h"

#include <string.h>

enum {
    GEMM_TOKENS = 64, /* a whole pass: 16 tokens per split cost 4 to 14 % of the speed */
    OCTETS = TILES_PER_BLOCK * OCTETS_PER_TILE,
    PREFETCH_BYTES = 8192
};

/* One segment of one row block, ready for any token. */
typedef struct {
    /* low, high index register of every 32 bytes of weights, in their order */
    _Alignas(32) uint8_t indices[MAX_STEPS * TMAC_MAX_BITS * VECTOR_BYTES * 2];
    _Alignas(32) float scales[TMAC_ROWS_PER_BLOCK], constants[TMAC_ROWS_PER_BLOCK]; /* where group_size > 0 */
} segment_rows;

INLINE void split_segment(const tmac_shape *shape, const uint8_t *segment, segment_rows *rows, const int bits)
{
    const int32_t bytes = tmac_steps_per_segment(shape) * bits * VECTOR_BYTES;
    for (int32_t line = 0; line < bytes; line += 64) {
        _mm_prefetch((const char *)segment + line + PREFETCH_BYTES, _MM_HINT_T0);
        UNROLL for (int32_t i = line; i < line + 64; i += INDEX_BYTES)
        {
            const __m256i w = _mm256_load_si256((const __m256i *)(segment + i));
            _mm256_store_si256((__m256i *)(rows->indices + 2 * i), low_index(w));
            _mm256_store_si256((__m256i *)(rows->indices + 2 * i) + 1, high_index(w));
        }
    }
    if (!shape->group_size) return;
    for (int r = 0; r < TMAC_ROWS_PER_BLOCK; r += OCTET_ROWS) {
        const __m256 zero = shape->has_zeros ? group_tail(segment + bytes, 1, r) : _mm256_set1_ps(shape->zero);
        _mm256_store_ps(rows->scales + r, group_tail(segment + bytes, 0, r));
        _mm256_store_ps(rows->constants + r, _mm256_sub_ps(_mm256_set1_ps(plane_middle(bits)), zero));
    }
}

/* Entries of half i of a quad; index: the low index register of some weights, the high one follows. */
INLINE __m256i entries_of(__m256i table, const uint8_t *index, const int i)
{
    return _mm256_shuffle_epi8(table, _mm256_load_si256((const __m256i *)index + i));
}

/* int8 tables: planes [begin, end) of one quad for all octets. indices: of this quad in the step's first vector. */
INLINE void quad_pass(const uint8_t *indices, const int8_t *table, __m256i sums[OCTETS], const int begin, const int end,
                      const int bits)
{
    const __m256i table_01 = table_half(table, 0), table_23 = table_half(table, 1);
    UNROLL for (int tile = 0; tile < TILES_PER_BLOCK; tile++)
    {
        const uint8_t *at = indices + tile * bits * 4 * INDEX_BYTES;
        __m256i *sum = sums + tile * OCTETS_PER_TILE;
        UNROLL for (int p = begin; p + 1 < end; p += 2)
            UNROLL for (int o = 0; o < OCTETS_PER_TILE; o++)
            {
                const uint8_t *index = at + (p + o) * 4 * INDEX_BYTES;
                sum[o] = add_bytes(sum[o], entries_of(table_01, index, 0), p - begin, p + 1 - begin);
                sum[o] = add_bytes(sum[o], entries_of(table_23, index, 1), p - begin, p + 1 - begin);
            }
        if (end % 2 == 0) continue;
        const int p = end - 1 - begin; /* the last plane of odd bits: see add_last_plane */
        const __m256i first = entries_of(table_01, at + (end - 1) * 4 * INDEX_BYTES, 0);
        const __m256i second = entries_of(table_23, at + (end - 1) * 4 * INDEX_BYTES, 1);
        sum[0] = add_bytes(sum[0], _mm256_unpacklo_epi8(first, second), p, p);
        sum[1] = add_bytes(sum[1], _mm256_unpackhi_epi8(first, second), p, p);
    }
}

/* Two registers of entries as one of bytes: sums of exact ones, which are at most 16; averages of TMAC_TABLES_FAST. */
INLINE __m256i combine(__m256i a, __m256i b, const int fast)
{
    return fast ? _mm256_avg_epu8(a, b) : _mm256_add_epi8(a, b);
}

/* Exact tables (the lo or the hi ones, times 2^shift) and TMAC_TABLES_FAST: planes [begin, end) of one step for all
 * octets. */
INLINE void step_pass(const uint8_t *indices, const int8_t *table, int64_t quad_stride, __m256i sums[OCTETS],
                      const int begin, const int end, const int shift, const int bits, const int fast)
{
    const __m256i table_01 = table_half(table, 0), table_23 = table_half(table, 1);
    const __m256i next_01 = table_half(table + quad_stride, 0), next_23 = table_half(table + quad_stride, 1);
    UNROLL for (int tile = 0; tile < TILES_PER_BLOCK; tile++)
    {
        const uint8_t *at = indices + tile * bits * 4 * INDEX_BYTES;
        __m256i *sum = sums + tile * OCTETS_PER_TILE;
        UNROLL for (int v = begin; v < end; v++) /* two octets of a pair of planes, or the last plane */
        {
            const int last = v == bits - 1 && bits % 2, p = (last ? v : v / 2 * 2) - begin + shift;
            const uint8_t *index = at + v * 4 * INDEX_BYTES, *next = index + 2 * INDEX_BYTES;
            const __m256i first = combine(entries_of(table_01, index, 0), entries_of(next_01, next, 0), fast);
            const __m256i second = combine(entries_of(table_23, index, 1), entries_of(next_23, next, 1), fast);
            if (last && fast) {
                const __m256i average = combine(first, second, fast), zero = _mm256_setzero_si256();
                sum[0] = add_averages(sum[0], _mm256_unpacklo_epi8(average, zero), p, p);
                sum[1] = add_averages(sum[1], _mm256_unpackhi_epi8(average, zero), p, p);
            } else if (last) {
                sum[0] = add_bytes(sum[0], _mm256_unpacklo_epi8(first, second), p, p);
                sum[1] = add_bytes(sum[1], _mm256_unpackhi_epi8(first, second), p, p);
            } else if (fast) {
                sum[v % 2] = add_averages(sum[v % 2], combine(first, second, fast), p, p + 1);
            } else {
                sum[v % 2] = add_bytes(sum[v % 2], combine(first, second, fast), p, p + 1);
            }
        }
    }
}

/* totals: int32 sums of the block's rows over one segment. Planes, and lo and hi tables, that do not fit one int16
 * accumulator (octet_sum, avx2.h; here 8 exact bits go in two halves) take a pass each. Four planes of averages: at most
 * 4 steps * 127 * 15, what is added before the last step may wrap. */
INLINE void segment_lookup(const uint8_t *indices, const int8_t *tables, int64_t quad_stride, int32_t steps,
                           __m256i totals[OCTETS], const int bits, const int exact, const int fast)
{
    const int limit = exact && bits < 8 ? bits : INT8_SHARED_BITS, shared = exact && bits <= EXACT_SHARED_BITS;
    UNROLL for (int o = 0; o < OCTETS; o++) totals[o] = _mm256_setzero_si256();
    UNROLL for (int begin = 0; begin < bits; begin += limit)
        UNROLL for (int e = 0; e <= (exact && !shared); e++)
        {
            const int end = begin + limit < bits ? begin + limit : bits, shift = begin + 5 * e;
            const __m256i start = fast ? averages_start(steps, (1 << (end - begin)) - 1) : _mm256_setzero_si256();
            __m256i sums[OCTETS], wide[OCTETS_PER_TILE];
            UNROLL for (int o = 0; o < OCTETS; o++) sums[o] = start;
            for (int32_t step = 0; step < steps; step++) {
                const uint8_t *at = indices + step * bits * 2 * VECTOR_BYTES;
                const int8_t *table = tables + step * 2 * quad_stride + e * TABLE_BYTES;
                if (exact || fast) {
                    step_pass(at, table, quad_stride, sums, begin, end, 0, bits, fast);
                    if (shared) step_pass(at, table + TABLE_BYTES, quad_stride, sums, begin, end, 5, bits, fast);
                } else {
                    quad_pass(at, table, sums, begin, end, bits);
                    quad_pass(at + 2 * INDEX_BYTES, table + quad_stride, sums, begin, end, bits);
                }
            }
            UNROLL for (int o = 0; o < OCTETS; o++)
            {
                if (o % 2 == 0) add_lanes(sums[o], sums[o + 1], wide, fast ? 4 : 1);
                totals[o] = _mm256_add_epi32(totals[o], _mm256_slli_epi32(wide[o % 2], shift));
            }
        }
}

/* One segment and one token: the integers enter the floats. partial: float (64). */
INLINE void add_segment(const segment_rows *rows, const __m256i totals[OCTETS], float half_scale, float sum,
                        int grouped, float *partial)
{
    const __m256 h = _mm256_set1_ps(half_scale), s = _mm256_set1_ps(sum);
    UNROLL for (int o = 0; o < OCTETS; o++)
    {
        const int r = o * OCTET_ROWS;
        const __m256 entries = _mm256_cvtepi32_ps(totals[o]);
        __m256 value = _mm256_load_ps(partial + r);
        if (grouped) {
            const __m256 constant = _mm256_mul_ps(_mm256_load_ps(rows->constants + r), s);
            value = _mm256_fmadd_ps(_mm256_load_ps(rows->scales + r), _mm256_fmadd_ps(entries, h, constant), value);
        } else {
            value = _mm256_fmadd_ps(entries, h, value);
        }
        _mm256_store_ps(partial + r, value);
    }
}

/* What a block of the product reads: one row block, one K panel, tokens [token, token + tokens). */
typedef struct {
    const tmac_shape *shape;
    const tmac_lut *lut;
    const uint8_t *weights; /* the row block */
    int32_t segment_begin, segment_end;
    int32_t token, tokens;
} gemm_block;

/* partial: float (tokens, 64), the sums over the segments before; updated. */
INLINE void panel(const gemm_block *b, float *partial, const int bits, const int exact, const int fast)
{
    const tmac_lut *lut = b->lut;
    const int32_t n = lut->n, steps = tmac_steps_per_segment(b->shape);
    const int64_t quad_stride = (int64_t)n * (1 + exact) * TABLE_BYTES, segment_bytes = tmac_segment_bytes(b->shape);
    segment_rows rows;
    for (int32_t s = b->segment_begin; s < b->segment_end; s++) {
        split_segment(b->shape, b->weights + s * segment_bytes, &rows, bits);
        for (int32_t t = 0; t < b->tokens; t++) {
            const int64_t scale = (int64_t)s * n + b->token + t;
            __m256i totals[OCTETS];
            const int8_t *tables = quad_tables(lut, s * steps * 2, b->token + t);
            segment_lookup(rows.indices, tables, quad_stride, steps, totals, bits, exact, fast);
            add_segment(&rows, totals, lut->half_scales[scale], lut->sums[scale], b->shape->group_size != 0,
                        partial + t * TMAC_ROWS_PER_BLOCK);
        }
    }
}

typedef void panel_function(const gemm_block *b, float *partial);

#define PANEL(bits)                                                                                                 \
    static void tmac_lut_gemm_##bits##_avx2(const gemm_block *b, float *partial)                                    \
    {                                                                                                               \
        if (b->lut->exact)                                                                                          \
            panel(b, partial, bits, 1, 0);                                                                          \
        else if (b->lut->fast)                                                                                      \
            panel(b, partial, bits, 0, 1);                                                                          \
        else                                                                                                        \
            panel(b, partial, bits, 0, 0);                                                                          \
    }
PANEL(1) PANEL(2) PANEL(3) PANEL(4) PANEL(5) PANEL(6) PANEL(7) PANEL(8)
static panel_function *const panels[TMAC_MAX_BITS] = {tmac_lut_gemm_1_avx2, tmac_lut_gemm_2_avx2, tmac_lut_gemm_3_avx2,
                                                      tmac_lut_gemm_4_avx2, tmac_lut_gemm_5_avx2, tmac_lut_gemm_6_avx2,
                                                      tmac_lut_gemm_7_avx2, tmac_lut_gemm_8_avx2};

/* Rows of y to partial. row: the block's first. */
static void load_partial(const gemm_block *b, int32_t row, const float *y, int64_t ldy, float *partial)
{
    memset(partial, 0, (size_t)b->tokens * TMAC_ROWS_PER_BLOCK * sizeof *partial);
    if (b->segment_begin == 0) return;
    const int32_t left = b->shape->m - row, rows = left < TMAC_ROWS_PER_BLOCK ? left : TMAC_ROWS_PER_BLOCK;
    for (int32_t t = 0; t < b->tokens; t++)
        memcpy(partial + t * TMAC_ROWS_PER_BLOCK, y + (b->token + t) * ldy + row, (size_t)rows * sizeof *partial);
}

static void store_partial(const gemm_block *b, int32_t row, const float *partial, float *y, int64_t ldy)
{
    const int32_t n_segments = tmac_n_segments(b->shape);
    const int last = b->segment_end == n_segments, grouped = b->shape->group_size != 0;
    const uint8_t *row_tails = b->weights + n_segments * tmac_segment_bytes(b->shape);
    for (int32_t t = 0; t < b->tokens; t++)
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
    const int64_t block_bytes = tmac_block_bytes(shape);
    for (int32_t block = block_begin; block < block_end; block++)
        for (int32_t token = 0; token < lut->n; token += GEMM_TOKENS) {
            const int32_t tokens = lut->n - token < GEMM_TOKENS ? lut->n - token : GEMM_TOKENS;
            const gemm_block b = {shape, lut, weights + block * block_bytes, segment_begin, segment_end, token, tokens};
            _Alignas(32) float partial[GEMM_TOKENS * TMAC_ROWS_PER_BLOCK];
            load_partial(&b, block * TMAC_ROWS_PER_BLOCK, y, ldy, partial);
            panels[shape->bits - 1](&b, partial);
            store_partial(&b, block * TMAC_ROWS_PER_BLOCK, partial, y, ldy);
        }
}
