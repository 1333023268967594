/* What the NEON kernels share: addresses of tables, indices, lookups and the step from integers to floats.
 *
 * tbl with two registers looks up 32 entries: the tables of two k-groups, index byte = (k-group mod 2) << 4 | nibble.
 * In the order of reorder.c adjacent bytes of an index register are those two k-groups of one row and plane, so sadalp
 * adds both into an int16 lane: widening and accumulating cost one instruction per 16 lookups. It has no weights, so
 * planes go one after the other, highest first, and the sums are doubled between them. (tbl with one register needs
 * two smlal per 16 lookups instead; tbl with four reads the file's order but runs at a third of the rate.) */
#ifndef TMAC_ARCH_NEON_H
#define TMAC_ARCH_NEON_H
#include "../../kernels.h"

#include <arm_neon.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum {
    OCTET_ROWS = 8, /* rows of one accumulator */
    OCTETS = TMAC_ROWS_PER_BLOCK / OCTET_ROWS,
    INDEX_BYTES = 16 /* one register of indices */
};

/* int16 sums of 8 rows over a segment (at most 32 k-groups): lo of int8 tables or of the lo entries, hi of the hi
 * entries in units of EXACT_SPLIT. |entry| <= 127, |lo|, |hi| <= 16, so 127 * 7 * 32 = 28448 (3 planes) and
 * 16 * 63 * 32 = 32256 (6 planes) stay below 2^15. */
typedef struct {
    int16x8_t lo, hi;
} octet_sum;

/* Planes that one octet_sum can hold. */
INLINE int planes_per_sum(const int exact) { return exact ? 6 : 3; }

/* Tables of quad Q (16 columns) and token t: 64 bytes, or 2 x 64 where exact (lo, then hi). */
INLINE int8_t *quad_tables(const tmac_lut *lut, int32_t quad, int32_t t)
{
    return lut->tables + ((int64_t)quad * lut->n + t) * (1 + lut->exact) * TABLE_BYTES;
}

/* (nibble of w) | k-group << 4 for k-group = 0, 1, 0, 1 .. */
INLINE uint8x16_t low_index(uint8x16_t w)
{
    return vbslq_u8(vdupq_n_u8(0x0f), w, vreinterpretq_u8_u16(vdupq_n_u16(0x1000)));
}
INLINE uint8x16_t high_index(uint8x16_t w) { return vsriq_n_u8(vreinterpretq_u8_u16(vdupq_n_u16(0x1000)), w, 4); }

/* One plane of half a quad: `octets` octets x `tokens` tokens. tables: the half (two k-groups) of the first token. */
INLINE void half_lookup(const uint8x16_t *index, const int8_t *tables, octet_sum *sums, const int exact,
                        const int octets, const int tokens)
{
    UNROLL for (int t = 0; t < tokens; t++)
    {
        const int8_t *table = tables + t * (1 + exact) * TABLE_BYTES;
        const int8x16x2_t lo = {{vld1q_s8(table), vld1q_s8(table + 16)}};
        int8x16x2_t hi = lo;
        if (exact) hi.val[0] = vld1q_s8(table + TABLE_BYTES), hi.val[1] = vld1q_s8(table + TABLE_BYTES + 16);
        UNROLL for (int o = 0; o < octets; o++)
        {
            octet_sum *sum = sums + t * octets + o;
            sum->lo = vpadalq_s8(sum->lo, vqtbl2q_s8(lo, index[o]));
            if (exact) sum->hi = vpadalq_s8(sum->hi, vqtbl2q_s8(hi, index[o]));
        }
        __asm__ volatile(""); /* a fence for the scheduler, which would gather all lookups first and spill them */
    }
}

/* One plane of one quad. at: octets * INDEX_BYTES of indices. tables: of the first token. sums: (tokens, octets). */
INLINE void quad_lookup(const uint8_t *at, const int8_t *tables, octet_sum *sums, const int exact, const int octets,
                        const int tokens)
{
    uint8x16_t index[OCTETS];
    UNROLL for (int o = 0; o < octets; o++) index[o] = low_index(vld1q_u8(at + o * INDEX_BYTES));
    half_lookup(index, tables, sums, exact, octets, tokens);
    UNROLL for (int o = 0; o < octets; o++) index[o] = high_index(vld1q_u8(at + o * INDEX_BYTES));
    half_lookup(index, tables + TABLE_BYTES / 2, sums, exact, octets, tokens);
}

/* int32 sums of 8 rows. */
typedef struct {
    int32x4_t rows[2];
} octet_total;

/* total * 2^shift + sum */
INLINE octet_total add_sum(octet_total total, octet_sum sum, const int shift, const int exact)
{
    int32x4_t low = vshlq_s32(total.rows[0], vdupq_n_s32(shift)), high = vshlq_s32(total.rows[1], vdupq_n_s32(shift));
    low = vaddw_s16(low, vget_low_s16(sum.lo));
    high = vaddw_high_s16(high, sum.lo);
    if (exact) {
        low = vmlal_n_s16(low, vget_low_s16(sum.hi), EXACT_SPLIT);
        high = vmlal_high_n_s16(high, sum.hi, EXACT_SPLIT);
    }
    return (octet_total){{low, high}};
}

/* Integer sums of one segment, `octets` octets x `tokens` tokens. at: the first octet in plane 0 of the first step.
 * tables: of the first quad and token, quad_stride bytes from quad to quad. totals: (tokens, octets). */
INLINE void segment_lookup(const uint8_t *at, const int8_t *tables, int64_t quad_stride, int32_t steps,
                           octet_total *totals, const int bits, const int exact, const int octets, const int tokens)
{
    const int limit = planes_per_sum(exact), n = octets * tokens;
    UNROLL for (int i = 0; i < n; i++) totals[i].rows[0] = totals[i].rows[1] = vdupq_n_s32(0);
    for (int end = bits; end > 0; end -= limit) { /* planes [begin, end) share an octet_sum */
        const int begin = end > limit ? end - limit : 0;
        octet_sum sums[16];
        UNROLL for (int i = 0; i < n; i++) sums[i].lo = sums[i].hi = vdupq_n_s16(0);
        for (int plane = end - 1; plane >= begin; plane--) {
            UNROLL for (int i = 0; i < n; i++)
            {
                sums[i].lo = vaddq_s16(sums[i].lo, sums[i].lo);
                if (exact) sums[i].hi = vaddq_s16(sums[i].hi, sums[i].hi);
            }
            const uint8_t *indices = at + plane * VECTOR_BYTES;
            for (int32_t quad = 0; quad < 2 * steps; quad++)
                quad_lookup(indices + (quad / 2 * bits * 2 + quad % 2) * OCTETS * INDEX_BYTES,
                            tables + quad * quad_stride, sums, exact, octets, tokens);
        }
        UNROLL for (int i = 0; i < n; i++) totals[i] = add_sum(totals[i], sums[i], end - begin, exact);
    }
}

/* 4 scales (which = 0) or zero points (which = 1) from row r of the block on: float16 in group tails, float32 in row
 * tails. */
INLINE float32x4_t group_tail(const uint8_t *tail, int which, int r)
{
    const uint16_t *at = (const uint16_t *)(tail + (which * TMAC_ROWS_PER_BLOCK + r) * 2);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at)));
}
INLINE float32x4_t row_tail(const uint8_t *tail, int which, int r)
{
    return vld1q_f32((const float *)(tail + (which * TMAC_ROWS_PER_BLOCK + r) * 4));
}

/* W / scale = sum of 2^p * (+-1)/2 + plane_middle - zero. */
INLINE float plane_middle(int bits) { return (float)((1 << bits) - 1) / 2; }

/* Rows r .. r+3 of the block: the segment's integers enter the floats; half_scale and sum are the segment's. tail: the
 * group tail (unused where group_size is 0). */
INLINE float32x4_t add_segment(const tmac_shape *shape, const uint8_t *tail, int r, int32x4_t total, float half_scale,
                               float sum, float32x4_t value)
{
    const float32x4_t entries = vcvtq_f32_s32(total), h = vdupq_n_f32(half_scale);
    if (!shape->group_size) return vfmaq_f32(value, entries, h);
    const float32x4_t zero = shape->has_zeros ? group_tail(tail, 1, r) : vdupq_n_f32(shape->zero);
    const float32x4_t constant = vmulq_n_f32(vsubq_f32(vdupq_n_f32(plane_middle(shape->bits)), zero), sum);
    return vfmaq_f32(value, group_tail(tail, 0, r), vfmaq_f32(constant, entries, h));
}

/* Rows r .. r+3 of the block after the last segment, token t. row_tails: read where group_size is 0. */
INLINE float32x4_t finish_rows(const tmac_shape *shape, const uint8_t *row_tails, const tmac_lut *lut, int32_t t, int r,
                               float32x4_t value)
{
    if (!shape->group_size) {
        const float32x4_t zero = shape->has_zeros ? row_tail(row_tails, 1, r) : vdupq_n_f32(shape->zero);
        const float32x4_t constant = vsubq_f32(vdupq_n_f32(plane_middle(shape->bits)), zero);
        value = vmulq_f32(row_tail(row_tails, 0, r), vfmaq_n_f32(value, constant, lut->totals[t]));
    }
    return lut->exact ? vmulq_n_f32(value, lut->token_scales[t]) : value;
}

/* The first `count` of 4 lanes to y; count may be below 0 or above 4. */
INLINE void store_rows(float *y, float32x4_t value, int32_t count)
{
    if (count >= 4) {
        vst1q_f32(y, value);
        return;
    }
    if (count > 0) y[0] = vgetq_lane_f32(value, 0);
    if (count > 1) y[1] = vgetq_lane_f32(value, 1);
    if (count > 2) y[2] = vgetq_lane_f32(value, 2);
}

float tmac_quantize_row_neon(const float *x, int32_t k, int8_t *q);
int tmac_lut_build_neon(const float *x, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                        const tmac_lut *lut);
void tmac_lut_build_exact_neon(const int8_t *q, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                               const tmac_lut *lut);
void tmac_reorder_neon(int32_t bits, const uint8_t *in, uint8_t *out);
void tmac_lut_gemv_neon(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                        int32_t block_end, float *y);
void tmac_lut_gemm_neon(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                        int32_t block_end, int32_t segment_begin, int32_t segment_end, float *y, int64_t ldy);
void tmac_ternary_build_neon(const int8_t *q, int32_t k, int32_t t, int32_t step_begin, int32_t step_end,
                             const tmac_lut *lut);
void tmac_ternary_gemv_neon(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                            int32_t block_begin, int32_t block_end, float *y);
void tmac_ternary_gemm_neon(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                            int32_t block_begin, int32_t block_end, void *scratch, float *y, int64_t ldy);
#endif
