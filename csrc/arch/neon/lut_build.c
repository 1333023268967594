/* Activations to tables with NEON: four registers of four entries are the table of one k-group. */
#include "neon.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Columns c .. c+3 of x, those >= k as 0. */
INLINE float32x4_t load_columns(const float *x, int32_t k, int32_t c)
{
    if (k - c >= 4) return vld1q_f32(x + c);
    float padded[4] = {0};
    for (int32_t j = 0; j < k - c; j++) padded[j] = x[c + j];
    return vld1q_f32(padded);
}

/* Lanes that are not finite; x is absolute. */
INLINE uint32x4_t not_finite(float32x4_t x) { return vmvnq_u32(vcleq_f32(x, vdupq_n_f32(FLT_MAX))); }

INLINE int8x8_t to_bytes(int32x4_t low, int32x4_t high)
{
    return vqmovn_s16(vcombine_s16(vqmovn_s32(low), vqmovn_s32(high)));
}

float tmac_quantize_row_neon(const float *x, int32_t k, int8_t *q)
{
    float32x4_t lanes = vdupq_n_f32(1e-5f);
    uint32x4_t bad = vdupq_n_u32(0);
    for (int32_t c = 0; c < k; c += 4) {
        const float32x4_t magnitude = vabsq_f32(load_columns(x, k, c));
        bad = vorrq_u32(bad, not_finite(magnitude));
        lanes = vmaxq_f32(lanes, magnitude);
    }
    if (vmaxvq_u32(bad)) return NAN;
    const float amax = vmaxvq_f32(lanes), inverse = 127.0f / amax;
    for (int32_t c = 0; c < k; c += 8) {
        int8_t bytes[8];
        vst1_s8(bytes, to_bytes(vcvtnq_s32_f32(vmulq_n_f32(load_columns(x, k, c), inverse)),
                                vcvtnq_s32_f32(vmulq_n_f32(load_columns(x, k, c + 4), inverse))));
        memcpy(q + c, bytes, k - c < 8 ? (size_t)(k - c) : 8);
    }
    return amax / 127.0f;
}

/* (|x0| + |x1|) + (|x2| + |x3|) of four k-groups. */
INLINE float32x4_t group_magnitudes(const float32x4_t x[4])
{
    return vpaddq_f32(vpaddq_f32(vabsq_f32(x[0]), vabsq_f32(x[1])), vpaddq_f32(vabsq_f32(x[2]), vabsq_f32(x[3])));
}

/* Lane j + lane j+8, then j+4, j+2, j+1; sums[i] holds lanes 4i .. 4i+3. */
INLINE float sum_lanes(const float32x4_t sums[4])
{
    const float32x4_t four = vaddq_f32(vaddq_f32(sums[0], sums[2]), vaddq_f32(sums[1], sums[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

INLINE int32x4_t scaled(float32x4_t entries, float inverse) { return vcvtnq_s32_f32(vmulq_n_f32(entries, inverse)); }

/* The table of one k-group; offset: added by exclusive or. */
INLINE void group_build(float32x4_t x, float inverse, int8x8_t offset, int8_t *table)
{
    /* signs of bits 0 and 1 of the entry; bits 2 and 3 come from both and one */
    static const float sign0[4] = {-1, 1, -1, 1}, sign1[4] = {-1, -1, 1, 1};
    const float32x4_t low = vaddq_f32(vmulq_laneq_f32(vld1q_f32(sign0), x, 0), vmulq_laneq_f32(vld1q_f32(sign1), x, 1));
    const float32x4_t x2 = vdupq_laneq_f32(x, 2), x3 = vdupq_laneq_f32(x, 3);
    const float32x4_t both = vaddq_f32(x2, x3), one = vsubq_f32(x2, x3);
    const int8x8_t front = to_bytes(scaled(vsubq_f32(low, both), inverse), scaled(vaddq_f32(low, one), inverse));
    const int8x8_t back = to_bytes(scaled(vsubq_f32(low, one), inverse), scaled(vaddq_f32(low, both), inverse));
    vst1_s8(table, veor_s8(front, offset));
    vst1_s8(table + 8, veor_s8(back, offset));
}

int tmac_lut_build_neon(const float *x, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                        const tmac_lut *lut)
{
    const int32_t columns = lut->segment_columns;
    for (int32_t s = segment_begin; s < segment_end; s++) {
        const int32_t begin = s * columns, end = begin + columns;
        float32x4_t lanes = vdupq_n_f32(0), sums[4] = {lanes, lanes, lanes, lanes};
        uint32x4_t bad = vdupq_n_u32(0);
        for (int32_t c = begin; c < end; c += QUAD_COLUMNS) {
            float32x4_t v[4];
            UNROLL for (int g = 0; g < 4; g++)
            {
                v[g] = load_columns(x, k, c + g * 4);
                sums[g] = vaddq_f32(sums[g], v[g]);
            }
            const float32x4_t magnitudes = group_magnitudes(v);
            bad = vorrq_u32(bad, not_finite(magnitudes));
            lanes = vmaxq_f32(lanes, magnitudes);
        }
        if (vmaxvq_u32(bad)) return 1;
        const float amax = vmaxvq_f32(lanes), inverse = amax >= TMAC_TABLE_AMAX_MIN ? 127.0f / amax : 0.0f;
        lut->half_scales[(int64_t)s * lut->n + t] = 0.5f * (amax / 127.0f);
        lut->sums[(int64_t)s * lut->n + t] = sum_lanes(sums);
        for (int32_t c = begin; c < end; c += QUAD_COLUMNS)
            for (int g = 0; g < 4; g++)
                group_build(load_columns(x, k, c + g * 4), inverse, vdup_n_s8(lut->fast ? -128 : 0),
                            quad_tables(lut, c / QUAD_COLUMNS, t) + g * 16);
    }
    return 0;
}

/* The exact table of one k-group: lo to lo[0..15], hi TABLE_BYTES later. */
INLINE void group_build_exact(const int8_t x[4], int8_t *lo)
{
    static const int16_t sign0[8] = {-1, 1, -1, 1, -1, 1, -1, 1}, sign1[8] = {-1, -1, 1, 1, -1, -1, 1, 1};
    static const int16_t sign2[8] = {-1, -1, -1, -1, 1, 1, 1, 1};
    const int16x8_t half = vdupq_n_s16(EXACT_SPLIT / 2), low_bits = vdupq_n_s16(EXACT_SPLIT - 1);
    const int16x8_t x3 = vdupq_n_s16(x[3]);
    int16x8_t low = vmulq_n_s16(vld1q_s16(sign0), x[0]);
    low = vmlaq_n_s16(low, vld1q_s16(sign1), x[1]);
    low = vmlaq_n_s16(low, vld1q_s16(sign2), x[2]);
    /* sums of entries 0-7 and 8-15, raised by half the split: the split is then a shift and a mask */
    const int16x8_t front = vaddq_s16(vsubq_s16(low, x3), half), back = vaddq_s16(vaddq_s16(low, x3), half);
    const int16x8_t lo_front = vsubq_s16(vandq_s16(front, low_bits), half);
    const int16x8_t lo_back = vsubq_s16(vandq_s16(back, low_bits), half);
    vst1q_s8(lo, vcombine_s8(vmovn_s16(lo_front), vmovn_s16(lo_back)));
    vst1q_s8(lo + TABLE_BYTES, vcombine_s8(vshrn_n_s16(front, 5), vshrn_n_s16(back, 5)));
}

void tmac_lut_build_exact_neon(const int8_t *q, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                               const tmac_lut *lut)
{
    const int32_t columns = lut->segment_columns;
    for (int32_t s = segment_begin; s < segment_end; s++) {
        int32_t total = 0;
        for (int32_t c = s * columns; c < (s + 1) * columns; c += QUAD_COLUMNS) {
            int8_t x[QUAD_COLUMNS] = {0};
            if (k > c) memcpy(x, q + c, k - c < QUAD_COLUMNS ? (size_t)(k - c) : QUAD_COLUMNS);
            for (int g = 0; g < 4; g++) group_build_exact(x + g * 4, quad_tables(lut, c / QUAD_COLUMNS, t) + g * 16);
            total += vaddlvq_s8(vld1q_s8(x));
        }
        lut->half_scales[(int64_t)s * lut->n + t] = 0.5f;
        lut->sums[(int64_t)s * lut->n + t] = (float)total;
    }
}
