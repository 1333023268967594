/* Activations to tables of triples with NEON. */
#include "ternary.h"

#include <string.h>

/* lo (0) or hi (32) entries of v = 0 .. 13, then their negatives. */
INLINE void store_entries(int8_t *table, int16x8_t front, int16x8_t back)
{
    const int8x16_t entries = vcombine_s8(vmovn_s16(front), vmovn_s16(back));
    vst1q_s8(table, entries);
    vst1q_s8(table + 16, vnegq_s8(entries));
}

INLINE void build_triple(const int8_t *x, int8_t *table)
{
    static const int16_t trits[TRIPLE_COLUMNS][16] = {{0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1},
                                                      {0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1},
                                                      {0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1}};
    int16x8_t hi[2], lo[2];
    for (int i = 0; i < 2; i++) {
        int16x8_t sums = vmulq_n_s16(vld1q_s16(trits[0] + 8 * i), x[0]);
        sums = vmlaq_n_s16(sums, vld1q_s16(trits[1] + 8 * i), x[1]);
        sums = vmlaq_n_s16(sums, vld1q_s16(trits[2] + 8 * i), x[2]);
        /* round(sum / 31): |sum| <= 384 puts the product off by less than 0.001; the nearest tie is 0.016 away */
        hi[i] = vqrdmulhq_n_s16(sums, 32768 / TRIPLE_SPLIT);
        lo[i] = vmlsq_n_s16(sums, hi[i], TRIPLE_SPLIT);
    }
    store_entries(table, lo[0], lo[1]);
    store_entries(table + 32, hi[0], hi[1]);
}

void tmac_ternary_build_neon(const int8_t *q, int32_t k, int32_t t, int32_t step_begin, int32_t step_end,
                             const tmac_lut *lut)
{
    for (int32_t s = step_begin; s < step_end; s++) {
        const int32_t c = s * TRIPLE_STEP_COLUMNS;
        int8_t *tables = lut->tables + ((int64_t)s * lut->n + t) * TRIPLE_STEP_TABLES, x[TRIPLE_STEP_COLUMNS] = {0};
        memcpy(x, q + c, (size_t)at_most(TRIPLE_STEP_COLUMNS, k - c));
        for (int g = 0; g < TRIPLES; g++) build_triple(x + g * TRIPLE_COLUMNS, tables + g * TRIPLE_TABLE_BYTES);
    }
}
