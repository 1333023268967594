/* Activations to tables with AVX2: one 128-bit lane per k-group, so that packing leaves the 16 entries in order. */
#include "avx2.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Columns c .. c+7 of x, those >= k as 0. */
INLINE __m256 load_columns(const float *x, int32_t k, int32_t c)
{
    if (k - c >= 8) return _mm256_loadu_ps(x + c);
    return k > c ? _mm256_maskload_ps(x + c, first_lanes(k - c)) : _mm256_setzero_ps();
}

INLINE __m256 absolute(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

/* Lanes of x that are not finite; x is absolute. */
INLINE __m256 not_finite(__m256 x) { return _mm256_cmp_ps(x, _mm256_set1_ps(FLT_MAX), _CMP_NLE_UQ); }

INLINE float largest_lane(__m256 x)
{
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    a = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}

float tmac_quantize_row_avx2(const float *x, int32_t k, int8_t *q)
{
    __m256 lanes = _mm256_set1_ps(1e-5f), bad = _mm256_setzero_ps();
    for (int32_t c = 0; c < k; c += 8) {
        __m256 magnitude = absolute(load_columns(x, k, c));
        bad = _mm256_or_ps(bad, not_finite(magnitude));
        lanes = _mm256_max_ps(lanes, magnitude);
    }
    if (_mm256_movemask_ps(bad)) return NAN;
    float amax = largest_lane(lanes);
    __m256 inverse = _mm256_set1_ps(127.0f / amax);
    for (int32_t c = 0; c < k; c += 8) {
        __m256i rounded = _mm256_cvtps_epi32(_mm256_mul_ps(load_columns(x, k, c), inverse));
        __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
        int64_t bytes = _mm_cvtsi128_si64(_mm_packs_epi16(words, words));
        memcpy(q + c, &bytes, k - c < 8 ? (size_t)(k - c) : 8);
    }
    return amax / 127.0f;
}

/* (|x0| + |x1|) + (|x2| + |x3|) of each lane, in all four places. */
INLINE __m256 group_magnitude(__m256 x)
{
    __m256 a = absolute(x);
    a = _mm256_add_ps(a, _mm256_permute_ps(a, 0xb1));
    return _mm256_add_ps(a, _mm256_permute_ps(a, 0x4e));
}

/* Lane j + lane j+8 (low + high), then j+4, j+2, j+1. */
INLINE float sum_lanes(__m256 low, __m256 high)
{
    __m256 a = _mm256_add_ps(low, high);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

INLINE __m256i scaled(__m256 entries, __m256 inverse) { return _mm256_cvtps_epi32(_mm256_mul_ps(entries, inverse)); }

/* The tables of two k-groups: each lane of x holds the 4 activations of one. */
INLINE __m256i half_build(__m256 x, __m256 inverse)
{
    /* signs of bits 0 and 1 of the entry; bits 2 and 3 come from both and one */
    const __m256 sign0 = _mm256_setr_ps(-0.0f, 0, -0.0f, 0, -0.0f, 0, -0.0f, 0);
    const __m256 sign1 = _mm256_setr_ps(-0.0f, -0.0f, 0, 0, -0.0f, -0.0f, 0, 0);
    __m256 x0 = _mm256_permute_ps(x, 0x00), x1 = _mm256_permute_ps(x, 0x55);
    __m256 x2 = _mm256_permute_ps(x, 0xaa), x3 = _mm256_permute_ps(x, 0xff);
    __m256 low = _mm256_add_ps(_mm256_xor_ps(x0, sign0), _mm256_xor_ps(x1, sign1));
    __m256 both = _mm256_add_ps(x2, x3), one = _mm256_sub_ps(x2, x3);
    __m256i front = _mm256_packs_epi32(scaled(_mm256_sub_ps(low, both), inverse),
                                       scaled(_mm256_add_ps(low, one), inverse));
    __m256i back = _mm256_packs_epi32(scaled(_mm256_sub_ps(low, one), inverse),
                                      scaled(_mm256_add_ps(low, both), inverse));
    return _mm256_packs_epi16(front, back);
}

int tmac_lut_build_avx2(const float *x, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                        const tmac_lut *lut)
{
    const int32_t columns = lut->segment_columns;
    for (int32_t s = segment_begin; s < segment_end; s++) {
        const int32_t begin = s * columns, end = begin + columns;
        __m256 lanes = _mm256_setzero_ps(), bad = lanes, sums[2] = {lanes, lanes};
        for (int32_t c = begin; c < end; c += QUAD_COLUMNS)
            UNROLL for (int i = 0; i < 2; i++)
            {
                __m256 v = load_columns(x, k, c + i * 8), magnitude = group_magnitude(v);
                bad = _mm256_or_ps(bad, not_finite(magnitude));
                lanes = _mm256_max_ps(lanes, magnitude);
                sums[i] = _mm256_add_ps(sums[i], v);
            }
        if (_mm256_movemask_ps(bad)) return 1;
        float amax = largest_lane(lanes);
        lut->half_scales[(int64_t)s * lut->n + t] = 0.5f * (amax / 127.0f);
        lut->sums[(int64_t)s * lut->n + t] = sum_lanes(sums[0], sums[1]);
        __m256 inverse = _mm256_set1_ps(amax >= TMAC_TABLE_AMAX_MIN ? 127.0f / amax : 0.0f);
        const __m256i offset = _mm256_set1_epi8(lut->fast ? -128 : 0);
        for (int32_t c = begin; c < end; c += QUAD_COLUMNS) {
            __m256i *table = (__m256i *)quad_tables(lut, c / QUAD_COLUMNS, t);
            _mm256_store_si256(table, _mm256_xor_si256(half_build(load_columns(x, k, c), inverse), offset));
            _mm256_store_si256(table + 1, _mm256_xor_si256(half_build(load_columns(x, k, c + 8), inverse), offset));
        }
    }
    return 0;
}

/* The exact tables of two k-groups: lo to table[0], hi to table[2] (64 bytes later). */
INLINE void half_build_exact(__m256i x, __m256i *table)
{
    const __m256i sign0 = _mm256_setr_epi32(-1, 1, -1, 1, -1, 1, -1, 1);
    const __m256i sign1 = _mm256_setr_epi32(-1, -1, 1, 1, -1, -1, 1, 1);
    const __m256i half = _mm256_set1_epi16(EXACT_SPLIT / 2), low_bits = _mm256_set1_epi16(EXACT_SPLIT - 1);
    __m256i x0 = _mm256_shuffle_epi32(x, 0x00), x1 = _mm256_shuffle_epi32(x, 0x55);
    __m256i x2 = _mm256_shuffle_epi32(x, 0xaa), x3 = _mm256_shuffle_epi32(x, 0xff);
    __m256i low = _mm256_add_epi32(_mm256_sign_epi32(x0, sign0), _mm256_sign_epi32(x1, sign1));
    __m256i both = _mm256_add_epi32(x2, x3), one = _mm256_sub_epi32(x2, x3);
    /* int16 sums of entries 0-7 and 8-15, raised by half the split: the split is then a shift and a mask */
    __m256i front = _mm256_packs_epi32(_mm256_sub_epi32(low, both), _mm256_add_epi32(low, one));
    __m256i back = _mm256_packs_epi32(_mm256_sub_epi32(low, one), _mm256_add_epi32(low, both));
    front = _mm256_add_epi16(front, half);
    back = _mm256_add_epi16(back, half);
    __m256i lo_front = _mm256_sub_epi16(_mm256_and_si256(front, low_bits), half);
    __m256i lo_back = _mm256_sub_epi16(_mm256_and_si256(back, low_bits), half);
    _mm256_store_si256(table, _mm256_packs_epi16(lo_front, lo_back));
    _mm256_store_si256(table + 2, _mm256_packs_epi16(_mm256_srai_epi16(front, 5), _mm256_srai_epi16(back, 5)));
}

INLINE int32_t sum_int_lanes(__m256i x)
{
    __m128i a = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32(a, 0xb1)));
}

void tmac_lut_build_exact_avx2(const int8_t *q, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                               const tmac_lut *lut)
{
    const int32_t columns = lut->segment_columns;
    for (int32_t s = segment_begin; s < segment_end; s++) {
        __m256i total = _mm256_setzero_si256();
        for (int32_t c = s * columns; c < (s + 1) * columns; c += QUAD_COLUMNS) {
            int8_t padded[QUAD_COLUMNS] = {0};
            if (k - c < QUAD_COLUMNS && k > c) memcpy(padded, q + c, (size_t)(k - c));
            const __m128i x = _mm_loadu_si128((const __m128i *)(k - c >= QUAD_COLUMNS ? q + c : padded));
            const __m256i front = _mm256_cvtepi8_epi32(x), back = _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8));
            __m256i *table = (__m256i *)quad_tables(lut, c / QUAD_COLUMNS, t);
            half_build_exact(front, table);
            half_build_exact(back, table + 1);
            total = _mm256_add_epi32(total, _mm256_add_epi32(front, back));
        }
        lut->half_scales[(int64_t)s * lut->n + t] = 0.5f;
        lut->sums[(int64_t)s * lut->n + t] = (float)sum_int_lanes(total);
    }
}
