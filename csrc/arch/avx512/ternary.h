/* What the ternary AVX-512 kernels share: lookups of a panel, and the step from sums to rows.
 *
 * vpermi2b looks up 64 rows in the 128 bytes of one group's table and ignores the sign in bit 7 of a code, which a
 * masked subtraction applies. Six groups add up within int8 (|lo| <= 6 * 16, |hi| <= 6 * 20), vpmaddubsw joins lo + 32 hi
 * in int16, where a panel of 24 groups stays within 24 * 640. */
#ifndef TMAC_ARCH_AVX512_TERNARY_H
#define TMAC_ARCH_AVX512_TERNARY_H
#include "avx512.h"

/* Sums of 64 rows in the order that unpacking leaves: [2 i + odd], lane 4 l + j is row 16 l + 8 i + 2 j + odd. */
typedef struct {
    __m512i lane[4];
} ternary_sum;

enum { TERNARY_MAX_SUMS = 4 }; /* row blocks x tokens of one panel: more would spill */

/* Where a panel's operands lie. */
typedef struct {
    const uint8_t *codes; /* of the first row block; the next ones follow at 64 bytes */
    int64_t group_bytes;  /* from group to group */
    const int8_t *tables; /* of the first token */
    int64_t token_bytes, step_bytes;
    int32_t steps; /* at most TERNARY_PANEL_STEPS */
} ternary_panel;

/* One step: words[token * blocks + block][0, 1] += rows 0..7, 8..15 of each lane. */
INLINE void ternary_step(const uint8_t *codes, const int64_t group_bytes, const int8_t *tables, const int64_t token_bytes,
                         __m512i words[][2], const int blocks, const int tokens)
{
    const __m512i weights = _mm512_set1_epi16(EXACT_SPLIT << 8 | 1);
    __m512i lo[TERNARY_MAX_SUMS], hi[TERNARY_MAX_SUMS];
    UNROLL for (int g = 0; g < TERNARY_GROUPS; g++)
    {
        __m512i code[TERNARY_MAX_SUMS];
        __mmask64 negative[TERNARY_MAX_SUMS];
        UNROLL for (int b = 0; b < blocks; b++)
        {
            code[b] = _mm512_load_si512(codes + g * group_bytes + b * TMAC_ROWS_PER_BLOCK);
            negative[b] = _mm512_movepi8_mask(code[b]);
        }
        UNROLL for (int t = 0; t < tokens; t++)
        {
            const int8_t *table = tables + t * token_bytes + g * 2 * TERNARY_TABLE_BYTES;
            const __m512i lo_0 = _mm512_load_si512(table), lo_1 = _mm512_load_si512(table + 64);
            const __m512i hi_0 = _mm512_load_si512(table + 128), hi_1 = _mm512_load_si512(table + 192);
            UNROLL for (int b = 0; b < blocks; b++)
            {
                const int i = t * blocks + b;
                __m512i a = _mm512_permutex2var_epi8(lo_0, code[b], lo_1), c = _mm512_permutex2var_epi8(hi_0, code[b], hi_1);
                a = _mm512_mask_sub_epi8(a, negative[b], _mm512_setzero_si512(), a);
                c = _mm512_mask_sub_epi8(c, negative[b], _mm512_setzero_si512(), c);
                lo[i] = g ? _mm512_add_epi8(lo[i], a) : a;
                hi[i] = g ? _mm512_add_epi8(hi[i], c) : c;
                __asm__("" : "+v"(lo[i]), "+v"(hi[i])); /* else gcc adds the groups in another order, and spills */
            }
        }
        __asm__ volatile("" ::: "memory");
    }
    UNROLL for (int i = 0; i < blocks * tokens; i++)
    {
        const __m512i first = _mm512_unpacklo_epi8(lo[i], hi[i]), second = _mm512_unpackhi_epi8(lo[i], hi[i]);
        words[i][0] = _mm512_add_epi16(words[i][0], _mm512_maddubs_epi16(weights, first));
        words[i][1] = _mm512_add_epi16(words[i][1], _mm512_maddubs_epi16(weights, second));
    }
}

/* sums[token * blocks + block] += the panel. */
INLINE void ternary_lookup(const ternary_panel *p, ternary_sum *sums, const int blocks, const int tokens)
{
    __m512i words[TERNARY_MAX_SUMS][2];
    UNROLL for (int i = 0; i < blocks * tokens; i++) words[i][0] = words[i][1] = _mm512_setzero_si512();
    for (int32_t s = 0; s < p->steps; s++)
        ternary_step(p->codes + s * TERNARY_GROUPS * p->group_bytes, p->group_bytes, p->tables + s * p->step_bytes,
                     p->token_bytes, words, blocks, tokens);
    UNROLL for (int i = 0; i < blocks * tokens; i++)
        UNROLL for (int half = 0; half < 2; half++)
        {
            const __m512i even = _mm512_srai_epi32(_mm512_slli_epi32(words[i][half], 16), 16);
            __m512i *lanes = sums[i].lane + 2 * half;
            lanes[0] = _mm512_add_epi32(lanes[0], even);
            lanes[1] = _mm512_add_epi32(lanes[1], _mm512_srai_epi32(words[i][half], 16));
        }
}

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
        if (last) value = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(scales + row), value), _mm512_set1_ps(token_scale));
        _mm512_mask_storeu_ps(y + row, inside, value);
    }
}
#endif
