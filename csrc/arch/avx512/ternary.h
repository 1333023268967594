/* What the ternary AVX-512 kernels share: lookups of a panel, and the step from sums to rows.
 *
 * vpermi2b looks up 64 rows in the 128 bytes of one group's table and ignores the sign in bit 7 of a code, which a
 * masked subtraction applies. Six groups add up within int8 (|lo| <= 6 * 16, |hi| <= 6 * 20), vpmaddubsw joins lo and
 * 32 hi in int16, where a panel of 24 groups stays within 24 * 640. */
#ifndef TMAC_ARCH_AVX512_TERNARY_H
#define TMAC_ARCH_AVX512_TERNARY_H
#include "avx512.h"

/* Sums of 64 rows in the order that unpacking leaves: [2 i + odd], lane 4 l + j is row 16 l + 8 i + 2 j + odd. */
typedef struct {
    __m512i lane[4];
} ternary_sum;

/* Where a panel's operands lie. */
typedef struct {
    const uint8_t *codes; /* of a chunk; its row blocks lie side by side */
    const int8_t *tables;
    int64_t table_bytes; /* from step to step */
    int32_t steps;       /* at most TERNARY_PANEL_STEPS */
} ternary_panel;

/* One step: words[block][0, 1] += rows 0..7, 8..15 of each lane. */
INLINE void ternary_step(const uint8_t *codes, const int8_t *tables, __m512i words[][2], const int blocks)
{
    const __m512i weights = _mm512_set1_epi16(EXACT_SPLIT << 8 | 1), zero = _mm512_setzero_si512();
    __m512i lo[TERNARY_CHUNK_BLOCKS], hi[TERNARY_CHUNK_BLOCKS];
    UNROLL for (int b = 0; b < blocks; b++) lo[b] = hi[b] = zero;
    UNROLL for (int g = 0; g < TERNARY_GROUPS; g++)
    {
        const int8_t *table = tables + g * 2 * TERNARY_TABLE_BYTES;
        const __m512i lo_0 = _mm512_load_si512(table), lo_1 = _mm512_load_si512(table + 64);
        const __m512i hi_0 = _mm512_load_si512(table + 128), hi_1 = _mm512_load_si512(table + 192);
        UNROLL for (int b = 0; b < blocks; b++)
        {
            const __m512i code = _mm512_load_si512(codes + (g * blocks + b) * TMAC_ROWS_PER_BLOCK);
            const __mmask64 negative = _mm512_movepi8_mask(code);
            const __m512i low = _mm512_permutex2var_epi8(lo_0, code, lo_1);
            const __m512i high = _mm512_permutex2var_epi8(hi_0, code, hi_1);
            lo[b] = _mm512_add_epi8(lo[b], _mm512_mask_sub_epi8(low, negative, zero, low));
            hi[b] = _mm512_add_epi8(hi[b], _mm512_mask_sub_epi8(high, negative, zero, high));
            __asm__("" : "+v"(lo[b]), "+v"(hi[b])); /* else gcc adds the groups in another order, and spills */
        }
        __asm__ volatile("" ::: "memory");
    }
    UNROLL for (int b = 0; b < blocks; b++)
    {
        const __m512i first = _mm512_unpacklo_epi8(lo[b], hi[b]), second = _mm512_unpackhi_epi8(lo[b], hi[b]);
        words[b][0] = _mm512_add_epi16(words[b][0], _mm512_maddubs_epi16(weights, first));
        words[b][1] = _mm512_add_epi16(words[b][1], _mm512_maddubs_epi16(weights, second));
    }
}

INLINE void ternary_chunk(const ternary_panel *p, ternary_sum *sums, const int blocks)
{
    __m512i words[TERNARY_CHUNK_BLOCKS][2];
    UNROLL for (int b = 0; b < blocks; b++) words[b][0] = words[b][1] = _mm512_setzero_si512();
    for (int32_t s = 0; s < p->steps; s++)
        ternary_step(p->codes + s * blocks * TERNARY_STEP_BYTES, p->tables + s * p->table_bytes, words, blocks);
    UNROLL for (int b = 0; b < blocks; b++)
        UNROLL for (int half = 0; half < 2; half++)
        {
            const __m512i even = _mm512_srai_epi32(_mm512_slli_epi32(words[b][half], 16), 16);
            __m512i *lanes = sums[b].lane + 2 * half;
            lanes[0] = _mm512_add_epi32(lanes[0], even);
            lanes[1] = _mm512_add_epi32(lanes[1], _mm512_srai_epi32(words[b][half], 16));
        }
}

/* sums[b] += the panel of a chunk of `blocks` row blocks, 1 .. TERNARY_CHUNK_BLOCKS. */
INLINE void ternary_lookup(const ternary_panel *p, ternary_sum *sums, int32_t blocks)
{
    switch (blocks) {
    case 1: ternary_chunk(p, sums, 1); break;
    case 2: ternary_chunk(p, sums, 2); break;
    case 3: ternary_chunk(p, sums, 3); break;
    default: ternary_chunk(p, sums, 4);
    }
}

INLINE void ternary_clear(ternary_sum *sums, int32_t blocks)
{
    for (int32_t b = 0; b < blocks; b++)
        UNROLL for (int i = 0; i < 4; i++) sums[b].lane[i] = _mm512_setzero_si512();
}

INLINE int32_t at_most(int32_t limit, int32_t n) { return n < limit ? n : limit; }

/* rows[l] = rows 16 l .. 16 l + 15 of a block. */
INLINE void ternary_rows(const ternary_sum *sum, __m512 rows[4])
{
    __m512i quarter[2][2], pair[2][2]; /* rows 8 i + 4 h .. + 3 of each lane */
    UNROLL for (int i = 0; i < 2; i++)
    {
        quarter[i][0] = _mm512_unpacklo_epi32(sum->lane[2 * i], sum->lane[2 * i + 1]);
        quarter[i][1] = _mm512_unpackhi_epi32(sum->lane[2 * i], sum->lane[2 * i + 1]);
        pair[i][0] = _mm512_shuffle_i32x4(quarter[i][0], quarter[i][1], 0x44);
        pair[i][1] = _mm512_shuffle_i32x4(quarter[i][0], quarter[i][1], 0xee);
    }
    UNROLL for (int h = 0; h < 2; h++)
    {
        rows[2 * h] = _mm512_cvtepi32_ps(_mm512_shuffle_i32x4(pair[0][h], pair[1][h], 0x88));
        rows[2 * h + 1] = _mm512_cvtepi32_ps(_mm512_shuffle_i32x4(pair[0][h], pair[1][h], 0xdd));
    }
}

/* Rows of a block and a token to y: on top of what is there unless `first`, scaled where `last`. */
INLINE void ternary_store(const tmac_shape *shape, const ternary_sum *sum, const float *scales, float token_scale,
                          int32_t block, const int first, const int last, float *y)
{
    __m512 rows[TILES_PER_BLOCK];
    ternary_rows(sum, rows);
    UNROLL for (int tile = 0; tile < TILES_PER_BLOCK; tile++)
    {
        const int32_t row = block * TMAC_ROWS_PER_BLOCK + tile * TMAC_ROWS_PER_TILE;
        const __mmask16 inside = rows_inside(shape->m, row);
        __m512 value = rows[tile];
        if (!first) value = _mm512_add_ps(_mm512_maskz_loadu_ps(inside, y + row), value);
        const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(scales + row), value);
        if (last) value = _mm512_mul_ps(scaled, _mm512_set1_ps(token_scale));
        _mm512_mask_storeu_ps(y + row, inside, value);
    }
}
#endif
