/* Fast aggregation with NEON: what a step looks up is averaged by urhadd (TMAC_TABLES_FAST, kernels.h). In the order of
 * reorder.c adjacent bytes are an even and an odd k-group of a row, so one uadalp adds both averages of 8 rows. */
#ifndef TMAC_ARCH_NEON_FAST_H
#define TMAC_ARCH_NEON_FAST_H
#include "neon.h"

enum { FAST_OCTETS = 4 /* side by side: their sums and indices and the tables of a step fit 32 registers */ };

/* One plane of one step. at: its first octet in quad 0; tables: of quad 0, quad_stride bytes before those of quad 1. */
INLINE void add_step(const uint8_t *at, const uint8_t *tables, int64_t quad_stride, uint16x8_t sums[FAST_OCTETS])
{
    const uint8_t *next = tables + quad_stride;
    const uint8x16x2_t table_01 = {{vld1q_u8(tables), vld1q_u8(tables + 16)}};
    const uint8x16x2_t table_23 = {{vld1q_u8(tables + 32), vld1q_u8(tables + 48)}};
    const uint8x16x2_t next_01 = {{vld1q_u8(next), vld1q_u8(next + 16)}};
    const uint8x16x2_t next_23 = {{vld1q_u8(next + 32), vld1q_u8(next + 48)}};
    UNROLL for (int o = 0; o < FAST_OCTETS; o++)
    {
        const uint8x16_t w = vld1q_u8(at + o * INDEX_BYTES), u = vld1q_u8(at + (OCTETS + o) * INDEX_BYTES);
        const uint8x16_t low = vrhaddq_u8(vqtbl2q_u8(table_01, low_index(w)), vqtbl2q_u8(next_01, low_index(u)));
        const uint8x16_t high = vrhaddq_u8(vqtbl2q_u8(table_23, high_index(w)), vqtbl2q_u8(next_23, high_index(u)));
        sums[o] = vpadalq_u8(sums[o], vrhaddq_u8(low, high));
    }
}

/* As segment_lookup: estimates of the integer sums of one segment, `octets` (4 or 8) octets x `tokens` tokens. */
INLINE void segment_average(const uint8_t *at, const int8_t *tables, int64_t quad_stride, int32_t steps,
                            octet_total *totals, const int bits, const int octets, const int tokens)
{
    for (int i = 0; i < octets * tokens; i += FAST_OCTETS) {
        const uint8_t *token_tables = (const uint8_t *)tables + i / octets * TABLE_BYTES;
        octet_total *total = totals + i;
        for (int plane = 0; plane < bits; plane++) {
            const uint8_t *indices = at + i % octets * INDEX_BYTES + plane * VECTOR_BYTES;
            uint16x8_t sums[FAST_OCTETS]; /* at most 4 steps * 510 */
            UNROLL for (int o = 0; o < FAST_OCTETS; o++) sums[o] = vdupq_n_u16(0);
            for (int32_t step = 0; step < steps; step++)
                add_step(indices + step * bits * VECTOR_BYTES, token_tables + 2 * step * quad_stride, quad_stride, sums);
            UNROLL for (int o = 0; o < FAST_OCTETS; o++)
            {
                int32x4_t *rows = total[o].rows;
                /* less 128 for each of two averages, and 1 for their rounding */
                const uint16x8_t offset = vdupq_n_u16((uint16_t)(257 * steps));
                const int16x8_t words = vreinterpretq_s16_u16(vsubq_u16(sums[o], offset));
                if (plane == 0) rows[0] = rows[1] = vdupq_n_s32(0);
                rows[0] = vmlal_n_s16(rows[0], vget_low_s16(words), (int16_t)(4 << plane));
                rows[1] = vmlal_high_n_s16(rows[1], words, (int16_t)(4 << plane));
            }
        }
    }
}
#endif
