/* What the AVX-512 kernels share: addresses of tables, indices, lookups and the step from integers to floats.
 *
 * vpermb looks up 64 bytes in a 64-byte register: the tables of one quad (4 k-groups x 16 entries). The index byte is
 * (k-group << 4) | nibble. A tile keeps the 4 k-groups of a row in adjacent bytes, so vpdpbusd with the plane's weight
 * 2^p as its constant adds the four entries of each row into one int32 lane: no widening, and one accumulator for all
 * planes. */
#ifndef TMAC_ARCH_AVX512_H
#define TMAC_ARCH_AVX512_H
#include "../../kernels.h"

#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

/* Exact entries are 32*hi + lo. While 32 * 2^p fits the unsigned byte constant, hi shares the accumulator of lo. */
enum { EXACT_SHARED_BITS = 3 };

/* Tables of quad Q (16 columns) and token t: 64 bytes, or 2 x 64 where exact (lo, then hi). */
INLINE int8_t *quad_tables(const tmac_lut *lut, int32_t quad, int32_t t)
{
    return lut->tables + ((int64_t)quad * lut->n + t) * (1 + lut->exact) * TABLE_BYTES;
}

/* (w & 0x0f) | k-group << 4, byte by byte. */
INLINE __m512i low_index(__m512i w)
{
    return _mm512_ternarylogic_epi32(w, _mm512_set1_epi8(0x0f), _mm512_set1_epi32(0x30201000), 0xea);
}
INLINE __m512i high_index(__m512i w) { return low_index(_mm512_srli_epi16(w, 4)); }

/* Accumulators of one tile and one token: hi is used only by exact tables of more than EXACT_SHARED_BITS bits. */
typedef struct {
    __m512i lo, hi;
} tile_sum;

/* Add what plane p looks up. */
INLINE void accumulate(tile_sum *sum, __m512i index, __m512i lo, __m512i hi, int p, const int bits, const int exact)
{
    sum->lo = _mm512_dpbusd_epi32(sum->lo, _mm512_set1_epi8((char)(1 << p)), _mm512_permutexvar_epi8(index, lo));
    if (!exact) return;
    __m512i entries = _mm512_permutexvar_epi8(index, hi);
    if (bits <= EXACT_SHARED_BITS)
        sum->lo = _mm512_dpbusd_epi32(sum->lo, _mm512_set1_epi8((char)(EXACT_SPLIT << p)), entries);
    else
        sum->hi = _mm512_dpbusd_epi32(sum->hi, _mm512_set1_epi8((char)(1 << p)), entries);
}

INLINE __m512 sum_to_float(tile_sum sum, const int bits, const int exact)
{
    if (exact && bits > EXACT_SHARED_BITS) sum.lo = _mm512_add_epi32(sum.lo, _mm512_slli_epi32(sum.hi, 5));
    return _mm512_cvtepi32_ps(sum.lo);
}

/* 16 scales (which = 0) or zero points (which = 1) of a tile from a group tail (float16) or a row tail (float32). */
INLINE __m512 group_tail(const uint8_t *tail, int which, int tile)
{
    const uint8_t *at = tail + (which * TMAC_ROWS_PER_BLOCK + tile * TMAC_ROWS_PER_TILE) * 2;
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)at));
}
INLINE __m512 row_tail(const uint8_t *tail, int which, int tile)
{
    return _mm512_loadu_ps(tail + (which * TMAC_ROWS_PER_BLOCK + tile * TMAC_ROWS_PER_TILE) * 4);
}

/* W / scale = sum of 2^p * (+-1)/2 + plane_middle - zero. */
INLINE float plane_middle(int bits) { return (float)((1 << bits) - 1) / 2; }

/* One scale per row (group_size 0): y = scale * fma(middle - zero, total, T). tail: the row tail. */
INLINE __m512 finish_rows(const tmac_shape *shape, const uint8_t *tail, int tile, __m512 partial, float total)
{
    __m512 zero = shape->has_zeros ? row_tail(tail, 1, tile) : _mm512_set1_ps(shape->zero);
    __m512 constant = _mm512_sub_ps(_mm512_set1_ps(plane_middle(shape->bits)), zero);
    return _mm512_mul_ps(row_tail(tail, 0, tile), _mm512_fmadd_ps(constant, _mm512_set1_ps(total), partial));
}

/* Rows of a tile that lie inside m. */
INLINE __mmask16 rows_inside(int32_t m, int32_t row)
{
    return m - row >= 16 ? 0xffff : m > row ? (__mmask16)((1 << (m - row)) - 1) : 0;
}

float tmac_quantize_row_avx512(const float *x, int32_t k, int8_t *q);
int tmac_lut_build_avx512(const float *x, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                          const tmac_lut *lut);
void tmac_lut_build_exact_avx512(const int8_t *q, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                                 const tmac_lut *lut);
void tmac_lut_gemv_avx512(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                          int32_t block_end, float *y);
void tmac_lut_gemm_avx512(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                          int32_t block_end, int32_t segment_begin, int32_t segment_end, float *y, int64_t ldy);
void tmac_ternary_build_avx512(const int8_t *q, int32_t k, int32_t t, int32_t step_begin, int32_t step_end,
                               const tmac_lut *lut);
void tmac_ternary_gemv_avx512(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, float *y);
void tmac_ternary_gemm_avx512(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, void *scratch, float *y, int64_t ldy);
#endif
