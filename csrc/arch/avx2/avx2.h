/* What the AVX2 kernels share: addresses of tables, indices, lookups and the step from integers to floats.
 *
 * vpshufb looks up 16 bytes in each 128-bit lane, so a 32-byte load of consecutive tables serves two k-groups at once,
 * lane i = k-group 2j + i, and the 64 bytes of a quad are two registers. In the order of reorder.c adjacent bytes of an
 * index register are two planes of one row and one k-group, so vpmaddubsw with the constants (2^p, 2^(p+1)) adds both
 * into an int16 lane: the widening costs one multiplication per 32 lookups. */
#ifndef TMAC_ARCH_AVX2_H
#define TMAC_ARCH_AVX2_H
#include "../../kernels.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum {
    MAX_STEPS = 4,  /* of a segment */
    OCTET_ROWS = 8, /* rows of one accumulator */
    OCTETS_PER_TILE = TMAC_ROWS_PER_TILE / OCTET_ROWS,
    INDEX_BYTES = 32 /* one register of indices */
};

/* int16 sums of 8 rows of a tile, lane i of 128 bits over the k-groups congruent i mod 2. The lanes meet in int32.
 *   int8 tables:            a = planes 0 .. 3, b = planes 4 .. 7 in units of 16
 *   exact, bits <= 2:       a = everything
 *   exact otherwise:        a = the lo entries, b = the hi entries, in units of EXACT_SPLIT
 * A lane takes 16 k-groups of a segment of 128 columns; |entry| <= 127, |sum| <= 512, |lo|, |hi| <= 16:
 *   127 * 15 * 16 = 30480, 512 * 3 * 16 = 24576, 16 * 127 * 16 = 32512 (7 bits), all below 2^15;
 *   8 bits exact: 16 * 255 * 8 = 32640, so that case widens every 64 columns. */
typedef struct {
    __m256i a, b;
} octet_sum;

enum { EXACT_SHARED_BITS = 2, INT8_SHARED_BITS = 4 };

/* Steps of 32 columns after which an octet_sum must be widened. */
INLINE int widen_steps(const int bits, const int exact) { return bits == 8 && exact ? 2 : MAX_STEPS; }

/* Whether octet_sum.b is in use. */
INLINE int two_sums(const int bits, const int exact) { return bits > (exact ? EXACT_SHARED_BITS : INT8_SHARED_BITS); }

/* Tables of quad Q (16 columns) and token t: 64 bytes, or 2 x 64 where exact (lo, then hi). */
INLINE int8_t *quad_tables(const tmac_lut *lut, int32_t quad, int32_t t)
{
    return lut->tables + ((int64_t)quad * lut->n + t) * (1 + lut->exact) * TABLE_BYTES;
}

/* Register i of a table row: k-groups 2i and 2i + 1. */
INLINE __m256i table_half(const int8_t *table, int i) { return _mm256_load_si256((const __m256i *)table + i); }

INLINE __m256i low_index(__m256i w) { return _mm256_and_si256(w, _mm256_set1_epi8(0x0f)); }
INLINE __m256i high_index(__m256i w) { return low_index(_mm256_srli_epi16(w, 4)); }

/* sum += 2^even * even bytes + 2^odd * odd bytes, pair by pair. The empty asm keeps the compiler from regrouping the
 * additions of a whole step into trees, whose leaves do not fit 16 registers (gcc 12: half the speed). */
INLINE __m256i add_bytes(__m256i sum, __m256i bytes, const int even, const int odd)
{
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(_mm256_set1_epi16((short)(1 << even | 256 << odd)), bytes));
    __asm__("" : "+x"(sum));
    return sum;
}

/* The same for averages (TMAC_TABLES_FAST), which are unsigned. */
INLINE __m256i add_averages(__m256i sum, __m256i bytes, const int even, const int odd)
{
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(bytes, _mm256_set1_epi16((short)(1 << even | 256 << odd))));
    __asm__("" : "+x"(sum));
    return sum;
}

/* What an int16 sum of averages starts from, of planes of total weight `weight` over `steps` steps: minus the 128 of
 * every average, and minus 1 per step and pair of lanes for rounding (4 of acc, kernels.h). */
INLINE __m256i averages_start(int32_t steps, int weight)
{
    const short start = (short)(-128 * steps * weight);
    return _mm256_set_m128i(_mm_set1_epi16(start), _mm_set1_epi16((short)(start - steps * weight)));
}

/* Entries whose even bytes weigh 2^p and odd bytes 2^next. lo: int8 tables or the lo entries; hi: exact only. */
INLINE void add_entries(octet_sum *sum, __m256i lo, __m256i hi, const int p, const int next, const int bits,
                        const int exact)
{
    if (!exact && p < INT8_SHARED_BITS) {
        sum->a = add_bytes(sum->a, lo, p, next);
    } else if (!exact) {
        sum->b = add_bytes(sum->b, lo, p - INT8_SHARED_BITS, next - INT8_SHARED_BITS);
    } else {
        sum->a = add_bytes(sum->a, lo, p, next);
        if (two_sums(bits, exact)) sum->b = add_bytes(sum->b, hi, p, next);
        else sum->a = add_bytes(sum->a, hi, p + 5, next + 5);
    }
}

/* The last plane of odd bits: a register holds 16 rows, so interleaving the entries of both halves of the quad makes
 * adjacent bytes two k-groups of one row, equal in weight. (Keeping even and odd rows apart instead, as sums of
 * biased words and of their high bytes, needs as many instructions and twice the accumulators.) */
INLINE void add_last_plane(octet_sum sums[OCTETS_PER_TILE], __m256i lo_01, __m256i lo_23, __m256i hi_01, __m256i hi_23,
                           const int bits, const int exact)
{
    const int p = bits - 1;
    add_entries(&sums[0], _mm256_unpacklo_epi8(lo_01, lo_23), _mm256_unpacklo_epi8(hi_01, hi_23), p, p, bits, exact);
    add_entries(&sums[1], _mm256_unpackhi_epi8(lo_01, lo_23), _mm256_unpackhi_epi8(hi_01, hi_23), p, p, bits, exact);
}

/* int8 tables: all planes of one quad and one tile. at: the quad's first indices (reorder.c). */
INLINE void quad_lookup(const uint8_t *at, const int8_t *tables, octet_sum sums[OCTETS_PER_TILE], const int bits)
{
    const __m256i *weights = (const __m256i *)at;
    const __m256i table_01 = table_half(tables, 0), table_23 = table_half(tables, 1);
    UNROLL for (int v = 0; v < bits; v++) /* two octets of a pair of planes, or the last plane */
    {
        const __m256i w = _mm256_load_si256(weights + 2 * v);
        const __m256i first = _mm256_shuffle_epi8(table_01, low_index(w));
        const __m256i second = _mm256_shuffle_epi8(table_23, high_index(w));
        if (bits % 2 && v == bits - 1) {
            add_last_plane(sums, first, second, first, second, bits, 0);
        } else {
            add_entries(&sums[v % 2], first, first, v / 2 * 2, v / 2 * 2 + 1, bits, 0);
            add_entries(&sums[v % 2], second, second, v / 2 * 2, v / 2 * 2 + 1, bits, 0);
        }
    }
}

/* The indices of one register in both quads of a step: low, high of quad 0, low, high of quad 1. */
INLINE void step_indices(const uint8_t *at, __m256i index[4])
{
    UNROLL for (int quad = 0; quad < 2; quad++)
    {
        const __m256i w = _mm256_load_si256((const __m256i *)at + quad);
        index[2 * quad] = low_index(w);
        index[2 * quad + 1] = high_index(w);
    }
}

/* What half i of a table looks up in both quads. Exact entries are at most 16, so that a few of them add as bytes. */
INLINE __m256i half_sum(const __m256i index[4], const int8_t *table, int64_t quad_stride, const int i)
{
    return _mm256_add_epi8(_mm256_shuffle_epi8(table_half(table, i), index[i]),
                           _mm256_shuffle_epi8(table_half(table + quad_stride, i), index[2 + i]));
}

/* Exact tables: all planes of one step and one tile; the byte sums of a step are weighed and widened once. lo: tables of
 * the first quad, quad_stride bytes before those of the second. */
INLINE void step_lookup_exact(const uint8_t *at, const int8_t *lo, int64_t quad_stride, octet_sum sums[OCTETS_PER_TILE],
                              const int bits)
{
    const int8_t *hi = lo + TABLE_BYTES;
    UNROLL for (int v = 0; v < bits; v++) /* two octets of a pair of planes, or the last plane */
    {
        __m256i index[4];
        step_indices(at + v * 2 * INDEX_BYTES, index);
        const __m256i lo_01 = half_sum(index, lo, quad_stride, 0), lo_23 = half_sum(index, lo, quad_stride, 1);
        const __m256i hi_01 = half_sum(index, hi, quad_stride, 0), hi_23 = half_sum(index, hi, quad_stride, 1);
        if (bits % 2 && v == bits - 1)
            add_last_plane(sums, lo_01, lo_23, hi_01, hi_23, bits, 1);
        else
            add_entries(&sums[v % 2], _mm256_add_epi8(lo_01, lo_23), _mm256_add_epi8(hi_01, hi_23), v / 2 * 2,
                        v / 2 * 2 + 1, bits, 1);
    }
}

/* TMAC_TABLES_FAST: all planes of one step and one tile, the four k-groups of a lane averaged. tables: of the first quad;
 * those of the second follow. sums start from averages_start. */
INLINE void step_lookup_fast(const uint8_t *at, const int8_t *tables, octet_sum sums[OCTETS_PER_TILE], const int bits)
{
    UNROLL for (int v = 0; v < bits; v++) /* two octets of a pair of planes, or the last plane */
    {
        __m256i index[4], half[2];
        step_indices(at + v * 2 * INDEX_BYTES, index);
        UNROLL for (int i = 0; i < 2; i++)
            half[i] = _mm256_avg_epu8(_mm256_shuffle_epi8(table_half(tables, i), index[i]),
                                      _mm256_shuffle_epi8(table_half(tables + TABLE_BYTES, i), index[2 + i]));
        const __m256i average = _mm256_avg_epu8(half[0], half[1]), zero = _mm256_setzero_si256();
        const int high = v >= INT8_SHARED_BITS, p = v / 2 * 2 - high * INT8_SHARED_BITS;
        __m256i *sum_0 = high ? &sums[0].b : &sums[0].a, *sum_1 = high ? &sums[1].b : &sums[1].a;
        if (bits % 2 && v == bits - 1) {
            *sum_0 = add_averages(*sum_0, _mm256_unpacklo_epi8(average, zero), p, p);
            *sum_1 = add_averages(*sum_1, _mm256_unpackhi_epi8(average, zero), p, p);
        } else {
            __m256i *sum = v % 2 ? sum_1 : sum_0;
            *sum = add_averages(*sum, average, p, p + 1);
        }
    }
}

/* Both lanes of the two octets x and y, added in int32. Octet 0 has rows 0-3 and 8-11 of the tile, octet 1 the others
 * (reorder.c), so that interleaving leaves rows 0-7 in out[0] and rows 8-15 in out[1]; times factor. */
INLINE void add_lanes(__m256i x, __m256i y, __m256i out[OCTETS_PER_TILE], const int factor)
{
    const __m256i factors = _mm256_set1_epi16((short)factor);
    const __m256i own = _mm256_blend_epi32(x, y, 0xf0), other = _mm256_permute2x128_si256(x, y, 0x21);
    out[0] = _mm256_madd_epi16(_mm256_unpacklo_epi16(own, other), factors);
    out[1] = _mm256_madd_epi16(_mm256_unpackhi_epi16(own, other), factors);
}

INLINE void widen(const octet_sum sums[OCTETS_PER_TILE], __m256i rows[OCTETS_PER_TILE], const int bits, const int exact,
                  const int fast)
{
    const int factor = fast ? 4 : 1;
    add_lanes(sums[0].a, sums[1].a, rows, factor);
    if (!two_sums(bits, exact)) return;
    __m256i high[OCTETS_PER_TILE];
    add_lanes(sums[0].b, sums[1].b, high, factor);
    for (int o = 0; o < OCTETS_PER_TILE; o++)
        rows[o] = _mm256_add_epi32(rows[o], _mm256_slli_epi32(high[o], exact ? 5 : 4));
}

/* 8 scales (which = 0) or zero points (which = 1) from row r of the block on: float16 in group tails, float32 in row
 * tails. */
INLINE __m256 group_tail(const uint8_t *tail, int which, int r)
{
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(tail + (which * TMAC_ROWS_PER_BLOCK + r) * 2)));
}
INLINE __m256 row_tail(const uint8_t *tail, int which, int r)
{
    return _mm256_load_ps((const float *)(tail + (which * TMAC_ROWS_PER_BLOCK + r) * 4));
}

/* W / scale = sum of 2^p * (+-1)/2 + plane_middle - zero. */
INLINE float plane_middle(int bits) { return (float)((1 << bits) - 1) / 2; }

/* One scale per row (group_size 0): y = scale * fma(middle - zero, total, T). tail: the row tail. */
INLINE __m256 finish_rows(const tmac_shape *shape, const uint8_t *tail, int r, __m256 partial, float total)
{
    __m256 zero = shape->has_zeros ? row_tail(tail, 1, r) : _mm256_set1_ps(shape->zero);
    __m256 constant = _mm256_sub_ps(_mm256_set1_ps(plane_middle(shape->bits)), zero);
    return _mm256_mul_ps(row_tail(tail, 0, r), _mm256_fmadd_ps(constant, _mm256_set1_ps(total), partial));
}

/* The first `count` of 8 lanes; count may be below 0 or above 8. */
INLINE __m256i first_lanes(int32_t count)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

float tmac_quantize_row_avx2(const float *x, int32_t k, int8_t *q);
int tmac_lut_build_avx2(const float *x, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                        const tmac_lut *lut);
void tmac_lut_build_exact_avx2(const int8_t *q, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                               const tmac_lut *lut);
void tmac_reorder_avx2(int32_t bits, const uint8_t *in, uint8_t *out);
void tmac_lut_gemv_avx2(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                        int32_t block_end, float *y);
void tmac_lut_gemm_avx2(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                        int32_t block_end, int32_t segment_begin, int32_t segment_end, float *y, int64_t ldy);
void tmac_ternary_build_avx2(const int8_t *q, int32_t k, int32_t t, int32_t step_begin, int32_t step_end,
                             const tmac_lut *lut);
void tmac_ternary_gemv_avx2(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                            int32_t block_begin, int32_t block_end, float *y);
void tmac_ternary_gemm_avx2(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                            int32_t block_begin, int32_t block_end, void *scratch, float *y, int64_t ldy);
#endif
