/* Activations to tables with AVX-512: one 128-bit lane per k-group, so that packing leaves the 16 entries in order. */
#include "avx512.h"

#include <float.h>
#include <math.h>

/* Lanes of the 16 columns from c on that lie inside k. */
static inline __mmask16 columns_inside(int32_t k, int32_t c)
{
    return k - c >= 16 ? 0xffff : k > c ? (__mmask16)((1 << (k - c)) - 1) : 0;
}

/* Lanes of x that are not finite. */
static inline __mmask16 not_finite(__m512 x)
{
    return _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(FLT_MAX), _CMP_NLE_UQ);
}

float tmac_quantize_row_avx512(const float *x, int32_t k, int8_t *q)
{
    __m512 lanes = _mm512_set1_ps(1e-5f);
    __mmask16 bad = 0;
    for (int32_t c = 0; c < k; c += 16) {
        __m512 v = _mm512_maskz_loadu_ps(columns_inside(k, c), x + c);
        bad |= not_finite(v);
        lanes = _mm512_max_ps(lanes, _mm512_abs_ps(v));
    }
    if (bad) return NAN;
    float amax = _mm512_reduce_max_ps(lanes);
    __m512 inverse = _mm512_set1_ps(127.0f / amax);
    for (int32_t c = 0; c < k; c += 16) {
        __mmask16 inside = columns_inside(k, c);
        __m512i rounded = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(inside, x + c), inverse));
        _mm_mask_storeu_epi8(q + c, inside, _mm512_cvtsepi32_epi8(rounded));
    }
    return amax / 127.0f;
}

/* (|x0| + |x1|) + (|x2| + |x3|) of each lane, in all four places. */
static inline __m512 group_magnitude(__m512 x)
{
    __m512 a = _mm512_abs_ps(x);
    a = _mm512_add_ps(a, _mm512_permute_ps(a, 0xb1));
    return _mm512_add_ps(a, _mm512_permute_ps(a, 0x4e));
}

/* Lane j + lane j+8, then j+4, j+2, j+1. */
static inline float sum_lanes(__m512 x)
{
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

/* Four registers of int32, lane g of register i = entries 4i .. 4i+3 of k-group g, to the 64 bytes of a quad. */
static inline __m512i pack_tables(__m512i a, __m512i b, __m512i c, __m512i d)
{
    return _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}

/* Tables of one quad: lane g of x holds the 4 activations of k-group g. */
static inline __m512i quad_build(__m512 x, __m512 inverse)
{
    const __m512 zero = _mm512_setzero_ps();
    __m512 x0 = _mm512_permute_ps(x, 0x00), x1 = _mm512_permute_ps(x, 0x55);
    __m512 x2 = _mm512_permute_ps(x, 0xaa), x3 = _mm512_permute_ps(x, 0xff);
    /* bits 0 and 1 of the entry; bits 2 and 3 come from both and one */
    __m512 low = _mm512_add_ps(_mm512_mask_sub_ps(x0, 0x5555, zero, x0), _mm512_mask_sub_ps(x1, 0x3333, zero, x1));
    __m512 both = _mm512_add_ps(x2, x3), one = _mm512_sub_ps(x2, x3);
    return pack_tables(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(low, both), inverse)),
                       _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_add_ps(low, one), inverse)),
                       _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(low, one), inverse)),
                       _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_add_ps(low, both), inverse)));
}

int tmac_lut_build_avx512(const float *x, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                          const tmac_lut *lut)
{
    const int32_t columns = lut->segment_columns;
    for (int32_t s = segment_begin; s < segment_end; s++) {
        const int32_t begin = s * columns, end = begin + columns;
        __m512 lanes = _mm512_setzero_ps(), sum = _mm512_setzero_ps();
        __mmask16 bad = 0;
        for (int32_t c = begin; c < end; c += QUAD_COLUMNS) {
            __m512 v = _mm512_maskz_loadu_ps(columns_inside(k, c), x + c);
            __m512 magnitude = group_magnitude(v);
            bad |= not_finite(magnitude);
            lanes = _mm512_max_ps(lanes, magnitude);
            sum = _mm512_add_ps(sum, v);
        }
        if (bad) return 1;
        float amax = _mm512_reduce_max_ps(lanes);
        lut->half_scales[(int64_t)s * lut->n + t] = 0.5f * (amax / 127.0f);
        lut->sums[(int64_t)s * lut->n + t] = sum_lanes(sum);
        __m512 inverse = _mm512_set1_ps(amax >= TMAC_TABLE_AMAX_MIN ? 127.0f / amax : 0.0f);
        for (int32_t c = begin; c < end; c += QUAD_COLUMNS) {
            __m512 v = _mm512_maskz_loadu_ps(columns_inside(k, c), x + c);
            _mm512_store_si512(quad_tables(lut, c / QUAD_COLUMNS, t), quad_build(v, inverse));
        }
    }
    return 0;
}

void tmac_lut_build_exact_avx512(const int8_t *q, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                                 const tmac_lut *lut)
{
    const int32_t columns = lut->segment_columns;
    const __m512i zero = _mm512_setzero_si512(), half = _mm512_set1_epi16(EXACT_SPLIT / 2);
    const __m512i low_bits = _mm512_set1_epi16(EXACT_SPLIT - 1);
    for (int32_t s = segment_begin; s < segment_end; s++) {
        __m512i total = zero;
        for (int32_t c = s * columns; c < (s + 1) * columns; c += QUAD_COLUMNS) {
            __m512i x = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(columns_inside(k, c), q + c));
            total = _mm512_add_epi32(total, x);
            __m512i x0 = _mm512_shuffle_epi32(x, 0x00), x1 = _mm512_shuffle_epi32(x, 0x55);
            __m512i x2 = _mm512_shuffle_epi32(x, 0xaa), x3 = _mm512_shuffle_epi32(x, 0xff);
            __m512i low = _mm512_add_epi32(_mm512_mask_sub_epi32(x0, 0x5555, zero, x0),
                                           _mm512_mask_sub_epi32(x1, 0x3333, zero, x1));
            __m512i both = _mm512_add_epi32(x2, x3), one = _mm512_sub_epi32(x2, x3);
            /* int16 sums of entries 0-7 and 8-15, raised by half the split: the split is then a shift and a mask */
            __m512i front = _mm512_packs_epi32(_mm512_sub_epi32(low, both), _mm512_add_epi32(low, one));
            __m512i back = _mm512_packs_epi32(_mm512_sub_epi32(low, one), _mm512_add_epi32(low, both));
            front = _mm512_add_epi16(front, half);
            back = _mm512_add_epi16(back, half);
            int8_t *table = quad_tables(lut, c / QUAD_COLUMNS, t);
            __m512i lo_front = _mm512_sub_epi16(_mm512_and_si512(front, low_bits), half);
            __m512i lo_back = _mm512_sub_epi16(_mm512_and_si512(back, low_bits), half);
            _mm512_store_si512(table, _mm512_packs_epi16(lo_front, lo_back));
            _mm512_store_si512(table + TABLE_BYTES,
                               _mm512_packs_epi16(_mm512_srai_epi16(front, 5), _mm512_srai_epi16(back, 5)));
        }
        lut->half_scales[(int64_t)s * lut->n + t] = 0.5f;
        lut->sums[(int64_t)s * lut->n + t] = (float)_mm512_reduce_add_epi32(total);
    }
}
