/* y = W x for one token with AVX2: the row block's tiles side by side, one forward stream of weights. */
#include "avx2.h"

enum { PREFETCH_BYTES = 2048 };

/* How far ahead to ask for weights. With few bytes per lookup the hardware does not keep up (Zen 3, DRAM, GB/s of 1 and 2
 * threads with and without: 1 bit 16.5 26.8, 13.3 22.5; 2 bits 18.4 27.6, 14.9 24.4; 3 bits 18.4 24.0, 15.7 22.7; 4 bits
 * 15.1 21.4, 15.4 22.3; exact: 2 bits 17.3 25.1, 13.1 21.5; 3 bits 11.7 20.5, 11.5 17.8; 4 bits 10.6 17.8, 11.5 19.3).
 * 8 to 128 KiB, and into the L2 cache only: the same within 5 %. 0 asks for what is read now, which costs nothing. */
INLINE int32_t prefetch_bytes(const tmac_lut *lut, const int bits)
{
    if (lut->prefetch) return lut->prefetch > 0 ? lut->prefetch : 0;
    return bits <= 3 ? PREFETCH_BYTES : 0;
}

/* Rows of one tile: the segment's integers enter the floats. at: the group tail (unused where group_size is 0). */
INLINE void add_segment(const tmac_shape *shape, const uint8_t *at, const tmac_lut *lut, int32_t s, int tile,
                        const __m256i sums[OCTETS_PER_TILE], float *rows, const int bits)
{
    const __m256 half_scale = _mm256_set1_ps(lut->half_scales[s]), sum = _mm256_set1_ps(lut->sums[s]);
    const __m256 middle = _mm256_set1_ps(plane_middle(bits));
    UNROLL for (int o = 0; o < OCTETS_PER_TILE; o++)
    {
        const int r = tile * TMAC_ROWS_PER_TILE + o * OCTET_ROWS;
        const __m256 entries = _mm256_cvtepi32_ps(sums[o]);
        __m256 value = _mm256_load_ps(rows + r);
        if (shape->group_size) {
            __m256 zero = shape->has_zeros ? group_tail(at, 1, r) : _mm256_set1_ps(shape->zero);
            __m256 constant = _mm256_mul_ps(_mm256_sub_ps(middle, zero), sum);
            value = _mm256_fmadd_ps(group_tail(at, 0, r), _mm256_fmadd_ps(entries, half_scale, constant), value);
        } else {
            value = _mm256_fmadd_ps(entries, half_scale, value);
        }
        _mm256_store_ps(rows + r, value);
    }
}

/* Integer sums of the block's rows over steps [begin, end) of a segment. Where an octet has two accumulators they do
 * not all fit the registers; still one pass in the order of memory is best (a pass for each half of the rows reads from
 * DRAM at a third of the speed). */
INLINE void steps_lookup(const uint8_t *segment, const int8_t *tables, int32_t begin, int32_t end, int32_t ahead,
                         __m256i totals[][OCTETS_PER_TILE], const int bits, const int exact, const int fast)
{
    octet_sum sums[TILES_PER_BLOCK][OCTETS_PER_TILE];
    const int low = bits < INT8_SHARED_BITS ? bits : INT8_SHARED_BITS, high = bits - low;
    const __m256i zero = _mm256_setzero_si256();
    const octet_sum start = {fast ? averages_start(end - begin, (1 << low) - 1) : zero,
                             fast ? averages_start(end - begin, (1 << high) - 1) : zero};
    UNROLL for (int i = 0; i < TILES_PER_BLOCK; i++)
        UNROLL for (int o = 0; o < OCTETS_PER_TILE; o++) sums[i][o] = start;
    for (int32_t step = begin; step < end; step++) {
        const uint8_t *at = segment + step * bits * VECTOR_BYTES;
        const int8_t *step_tables = tables + step * 2 * (1 + exact) * TABLE_BYTES;
        UNROLL for (int line = 0; line < bits * VECTOR_BYTES; line += 64)
            _mm_prefetch((const char *)at + line + ahead, _MM_HINT_T0);
        UNROLL for (int i = 0; i < TILES_PER_BLOCK; i++, at += bits * 2 * INDEX_BYTES)
            if (exact) {
                step_lookup_exact(at, step_tables, 2 * TABLE_BYTES, sums[i], bits);
            } else if (fast) {
                step_lookup_fast(at, step_tables, sums[i], bits);
            } else {
                quad_lookup(at, step_tables, sums[i], bits);
                quad_lookup(at + INDEX_BYTES, step_tables + TABLE_BYTES, sums[i], bits);
            }
    }
    UNROLL for (int i = 0; i < TILES_PER_BLOCK; i++) widen(sums[i], totals[i], bits, exact, fast);
}

/* The same over a whole segment, however often the accumulators must be emptied. */
INLINE void segment_lookup(const uint8_t *segment, const int8_t *tables, int32_t steps, int32_t ahead,
                           __m256i totals[][OCTETS_PER_TILE], const int bits, const int exact, const int fast)
{
    const int limit = widen_steps(bits, exact);
    if (limit == MAX_STEPS || steps <= limit) {
        steps_lookup(segment, tables, 0, steps, ahead, totals, bits, exact, fast);
        return;
    }
    __m256i second[TILES_PER_BLOCK][OCTETS_PER_TILE];
    steps_lookup(segment, tables, 0, limit, ahead, totals, bits, exact, fast);
    steps_lookup(segment, tables, limit, steps, ahead, second, bits, exact, fast);
    for (int i = 0; i < TILES_PER_BLOCK; i++)
        for (int o = 0; o < OCTETS_PER_TILE; o++) totals[i][o] = _mm256_add_epi32(totals[i][o], second[i][o]);
}

/* rows: the block's 64 rows, finished. at: the row tail. */
static void store_rows(const tmac_shape *shape, const uint8_t *at, const tmac_lut *lut, int32_t row, const float *rows,
                       float *y)
{
    for (int r = 0; r < TMAC_ROWS_PER_BLOCK; r += OCTET_ROWS) {
        __m256 value = _mm256_load_ps(rows + r);
        if (!shape->group_size) value = finish_rows(shape, at, r, value, lut->totals[0]);
        if (lut->exact) value = _mm256_mul_ps(value, _mm256_set1_ps(lut->token_scales[0]));
        if (shape->m - row - r >= OCTET_ROWS) _mm256_storeu_ps(y + row + r, value);
        else _mm256_maskstore_ps(y + row + r, first_lanes(shape->m - row - r), value);
    }
}

INLINE void gemv(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                 int32_t block_end, float *y, const int bits, const int exact, const int fast)
{
    const int32_t n_segments = tmac_n_segments(shape), steps = tmac_steps_per_segment(shape);
    const int32_t ahead = prefetch_bytes(lut, bits);
    const int64_t step_bytes = bits * VECTOR_BYTES, segment_bytes = tmac_segment_bytes(shape);
    const uint8_t *at = weights + block_begin * tmac_block_bytes(shape);
    for (int32_t block = block_begin; block < block_end; block++) {
        _Alignas(32) float rows[TMAC_ROWS_PER_BLOCK] = {0};
        for (int32_t s = 0; s < n_segments; s++, at += segment_bytes) {
            const int8_t *tables = quad_tables(lut, s * steps * 2, 0);
            __m256i totals[TILES_PER_BLOCK][OCTETS_PER_TILE];
            segment_lookup(at, tables, steps, ahead, totals, bits, exact, fast);
            UNROLL for (int i = 0; i < TILES_PER_BLOCK; i++)
                add_segment(shape, at + steps * step_bytes, lut, s, i, totals[i], rows, bits);
        }
        store_rows(shape, at, lut, block * TMAC_ROWS_PER_BLOCK, rows, y);
        at += shape->group_size ? 0 : 4 * TMAC_ROWS_PER_BLOCK * (1 + shape->has_zeros);
    }
}

#define GEMV(bits)                                                                                                  \
    static void tmac_lut_gemv_##bits##_avx2(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut,  \
                                            int32_t block_begin, int32_t block_end, float *y)                      \
    {                                                                                                               \
        if (lut->exact)                                                                                             \
            gemv(shape, weights, lut, block_begin, block_end, y, bits, 1, 0);                                       \
        else if (lut->fast)                                                                                         \
            gemv(shape, weights, lut, block_begin, block_end, y, bits, 0, 1);                                       \
        else                                                                                                        \
            gemv(shape, weights, lut, block_begin, block_end, y, bits, 0, 0);                                       \
    }
GEMV(1) GEMV(2) GEMV(3) GEMV(4) GEMV(5) GEMV(6) GEMV(7) GEMV(8)

void tmac_lut_gemv_avx2(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                        int32_t block_end, float *y)
{
    static void (*const gemv_of_bits[])(const tmac_shape *, const uint8_t *, const tmac_lut *, int32_t, int32_t,
                                        float *) = {
        tmac_lut_gemv_1_avx2, tmac_lut_gemv_2_avx2, tmac_lut_gemv_3_avx2, tmac_lut_gemv_4_avx2,
        tmac_lut_gemv_5_avx2, tmac_lut_gemv_6_avx2, tmac_lut_gemv_7_avx2, tmac_lut_gemv_8_avx2,
    };
    gemv_of_bits[shape->bits - 1](shape, weights, lut, block_begin, block_end, y);
}
