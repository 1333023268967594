/* What the ternary NEON kernels share: triples (layout.h), and lookups for up to four tokens.
 *
 * tbl with two registers looks up 32 entries: the sums of v = t0 + 3 t1 + 9 t2 = 0 .. 13, from 16 on their negatives,
 * so that a sign is bit 4 of the index. A sum is 31 hi + lo with |lo| <= 15: eight triples add up within int8 (8 * 15),
 * and a panel of 240 columns stays within int16 (240 * 128 = 30720). (The 122 sums of five weights need two tbl with
 * four registers for each byte of the sum, at a third of the rate.) */
#ifndef TMAC_ARCH_NEON_TERNARY_H
#define TMAC_ARCH_NEON_TERNARY_H
#include "neon.h"

enum {
    TRIPLE_SPLIT = 31,
    TRIPLE_TABLE_BYTES = 64, /* lo[32], hi[32] */
    TRIPLE_STEP_TABLES = TRIPLES * TRIPLE_TABLE_BYTES,
    PART_ROWS = 16, /* of a row block: one register of bytes */
    PARTS = TMAC_ROWS_PER_BLOCK / PART_ROWS,
    FEW_AT_ONCE = 4, /* tokens */
    TERNARY_PREFETCH_BYTES = 2048
};

INLINE int32_t at_most(int32_t limit, int32_t n) { return n < limit ? n : limit; }

/* |v| | sign << 4 of triple g. nibbles: vector g / 2 of a step; signs: vector 4. */
INLINE uint8x16_t triple_index(uint8x16_t nibbles, uint8x16_t signs, const int g)
{
    const uint8x16_t magnitude = g % 2 ? vshrq_n_u8(nibbles, 4) : vandq_u8(nibbles, vdupq_n_u8(15));
    return vbslq_u8(vdupq_n_u8(16), vshlq_u8(signs, vdupq_n_s8((int8_t)(g - 3))), magnitude);
}

INLINE int8x16x2_t triple_table(const int8_t *table) { return (int8x16x2_t){{vld1q_s8(table), vld1q_s8(table + 16)}}; }

/* Where the operands of a panel of one row block and some tokens lie. */
typedef struct {
    const uint8_t *codes;
    const int8_t *tables; /* of the panel's first step and the first token */
    int64_t table_bytes;  /* from step to step */
    int32_t steps;        /* at most TRIPLE_PANEL_STEPS */
} few_panel;

/* One step for `parts` parts from `part` on: words[token][part] += its rows 0-7 and 8-15. */
INLINE void few_rows(const uint8_t *codes, const int8_t *tables, int16x8_t words[][PARTS][2], const int part,
                     const int parts, const int tokens)
{
    const uint8_t *at = codes + part * PART_ROWS;
    int8x16_t lo[FEW_AT_ONCE][PARTS], hi[FEW_AT_ONCE][PARTS];
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int i = 0; i < parts; i++) lo[t][i] = hi[t][i] = vdupq_n_s8(0);
    UNROLL for (int g = 0; g < TRIPLES; g++)
    {
        uint8x16_t index[PARTS];
        UNROLL for (int i = 0; i < parts; i++)
        {
            const uint8_t *row = at + i * PART_ROWS;
            const uint8x16_t signs = vld1q_u8(row + TRIPLES / 2 * TMAC_ROWS_PER_BLOCK);
            index[i] = triple_index(vld1q_u8(row + g / 2 * TMAC_ROWS_PER_BLOCK), signs, g);
        }
        UNROLL for (int t = 0; t < tokens; t++)
        {
            const int8_t *table = tables + t * TRIPLE_STEP_TABLES + g * TRIPLE_TABLE_BYTES;
            const int8x16x2_t table_lo = triple_table(table), table_hi = triple_table(table + 32);
            UNROLL for (int i = 0; i < parts; i++)
            {
                lo[t][i] = vaddq_s8(lo[t][i], vqtbl2q_s8(table_lo, index[i]));
                hi[t][i] = vaddq_s8(hi[t][i], vqtbl2q_s8(table_hi, index[i]));
            }
        }
        __asm__ volatile(""); /* a fence for the scheduler, which would gather all lookups first and spill them */
    }
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int i = 0; i < parts; i++)
        {
            int16x8_t *sum = words[t][part + i];
            sum[0] = vaddw_s8(sum[0], vget_low_s8(lo[t][i]));
            sum[0] = vmlal_s8(sum[0], vget_low_s8(hi[t][i]), vdup_n_s8(TRIPLE_SPLIT));
            sum[1] = vaddw_high_s8(sum[1], lo[t][i]);
            sum[1] = vmlal_high_s8(sum[1], hi[t][i], vdupq_n_s8(TRIPLE_SPLIT));
        }
}

/* One token: all parts share a load of each table. Several: their sums of two parts fill the registers. */
INLINE void few_step(const uint8_t *codes, const int8_t *tables, int16x8_t words[][PARTS][2], const int tokens)
{
    const int parts = tokens == 1 ? PARTS : PARTS / 2;
    UNROLL for (int line = 0; line < TRIPLE_STEP_BYTES; line += 64)
        __builtin_prefetch(codes + line + TERNARY_PREFETCH_BYTES);
    UNROLL for (int part = 0; part < PARTS; part += parts) few_rows(codes, tables, words, part, parts, tokens);
}

/* 4 rows: on top of what y holds unless `first`, scaled where `last`. count: rows before m. */
INLINE void add_rows(float *y, int16x4_t words, int32_t count, const float *scales, float token_scale, const int first,
                     const int last)
{
    float32x4_t value = vcvtq_f32_s32(vmovl_s16(words));
    if (!first) {
        float before[4] = {0};
        for (int32_t i = 0; i < count && i < 4; i++) before[i] = y[i];
        value = vaddq_f32(value, vld1q_f32(before));
    }
    if (last) value = vmulq_n_f32(vmulq_f32(vld1q_f32(scales), value), token_scale);
    store_rows(y, value, count);
}

/* A panel of one row block for tokens token .. token + tokens - 1. first, last: whether it is the matrix's. */
INLINE void few_block(const few_panel *p, const tmac_shape *shape, const float *scales, const tmac_lut *lut,
                      int32_t block, int32_t token, const int first, const int last, float *y, int64_t ldy,
                      const int tokens)
{
    int16x8_t words[FEW_AT_ONCE][PARTS][2];
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int i = 0; i < PARTS * 2; i++) words[t][i / 2][i % 2] = vdupq_n_s16(0);
    for (int32_t s = 0; s < p->steps; s++)
        few_step(p->codes + s * TRIPLE_STEP_BYTES, p->tables + s * p->table_bytes, words, tokens);
    for (int t = 0; t < tokens; t++)
        for (int i = 0; i < PARTS * 4; i++) {
            const int32_t row = block * TMAC_ROWS_PER_BLOCK + i * 4;
            const int16x8_t eight = words[t][i / 4][i / 2 % 2];
            add_rows(y + (token + t) * ldy + row, i % 2 ? vget_high_s16(eight) : vget_low_s16(eight), shape->m - row,
                     scales + row, lut->token_scales[token + t], first, last);
        }
}

/* A slab for tokens token .. token + tokens - 1: panel by panel, so that its tables stay in the L1 cache; y holds the
 * sums between panels, exact in float (|sum| <= 2^23). */
INLINE void few_slab(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                     int32_t block_begin, int32_t block_end, int32_t token, float *y, int64_t ldy, const int tokens)
{
    const int32_t steps = tmac_triple_steps(shape);
    few_panel p = {.codes = slab, .table_bytes = (int64_t)lut->n * TRIPLE_STEP_TABLES};
    for (int32_t step = 0; step < steps; step += p.steps) {
        p.steps = at_most(TRIPLE_PANEL_STEPS, steps - step);
        p.tables = lut->tables + step * p.table_bytes + token * TRIPLE_STEP_TABLES;
        for (int32_t block = block_begin; block < block_end; block++, p.codes += p.steps * TRIPLE_STEP_BYTES)
            few_block(&p, shape, scales, lut, block, token, step == 0, step + p.steps == steps, y, ldy, tokens);
    }
}
#endif
