/* Ternary AVX2, many tokens: tables with a row of tokens for each sum of a k-group (4 columns), and the indices of
 * those rows, made from the triples in memory. */
#ifndef TMAC_ARCH_AVX2_TERNARY_GROUPS_H
#define TMAC_ARCH_AVX2_TERNARY_GROUPS_H
#include "ternary.h"

enum {
    GROUP_COLUMNS = 4,
    GROUPS = TRIPLE_STEP_COLUMNS / GROUP_COLUMNS,
    GROUP_SUMS = 81,
    INDICES = 8, /* bytes of a row's indices: GROUPS of them, and two that nobody reads */
    LANES = 16   /* tokens of a register */
};

/* columns[c] = column c of the step for 16 tokens. */
INLINE void transpose_columns(const int8_t *const *x, int32_t c, __m128i columns[8])
{
    __m128i a[8], b[8];
    UNROLL for (int i = 0; i < 8; i++)
        a[i] = _mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)(x[i] + c)),
                                 _mm_loadl_epi64((const __m128i *)(x[i + 8] + c)));
    UNROLL for (int i = 0; i < 4; i++)
    {
        b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 4]);
    }
    UNROLL for (int i = 0; i < 2; i++)
        UNROLL for (int j = 0; j < 2; j++)
        {
            a[4 * i + 2 * j] = _mm_unpacklo_epi8(b[2 * i + j], b[2 * i + j + 4]);
            a[4 * i + 2 * j + 1] = _mm_unpackhi_epi8(b[2 * i + j], b[2 * i + j + 4]);
        }
    UNROLL for (int i = 0; i < 4; i++)
    {
        columns[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 4]);
        columns[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 4]);
    }
}

/* Row i of the table: sum over j of (digit j of i in base 3, less 1) * x[j]; rows `stride` registers apart. */
INLINE void build_sums(const __m256i x[GROUP_COLUMNS], __m256i *table, const int stride)
{
    __m256i third = _mm256_sub_epi16(_mm256_setzero_si256(), x[3]);
    for (int i = 0; i < 3; i++, third = _mm256_add_epi16(third, x[3])) {
        __m256i second = _mm256_sub_epi16(third, x[2]);
        for (int j = 0; j < 3; j++, second = _mm256_add_epi16(second, x[2])) {
            __m256i first = _mm256_sub_epi16(second, x[1]);
            UNROLL for (int l = 0; l < 3; l++, first = _mm256_add_epi16(first, x[1]), table += 3 * stride)
            {
                _mm256_store_si256(table, _mm256_sub_epi16(first, x[0]));
                _mm256_store_si256(table + stride, first);
                _mm256_store_si256(table + 2 * stride, _mm256_add_epi16(first, x[0]));
            }
        }
    }
}

/* The tables of a step, [GROUPS][GROUP_SUMS][registers * LANES]. x: activations of each token. */
INLINE void build_tables(const int8_t *const *x, int32_t step, int16_t *tables, const int registers)
{
    __m256i *table = (__m256i *)tables;
    for (int32_t c = 0; c < TRIPLE_STEP_COLUMNS; c += 8)
        for (int v = 0; v < registers; v++) {
            __m128i columns[8];
            transpose_columns(x + v * LANES, step * TRIPLE_STEP_COLUMNS + c, columns);
            for (int g = 0; g < 2; g++) {
                __m256i four[GROUP_COLUMNS];
                UNROLL for (int j = 0; j < GROUP_COLUMNS; j++)
                    four[j] = _mm256_cvtepi8_epi16(columns[g * GROUP_COLUMNS + j]);
                build_sums(four, table + (c / GROUP_COLUMNS + g) * GROUP_SUMS * registers + v, registers);
            }
        }
}

/* Signed digits of a triple: trits[|v|] with v's sign. */
INLINE __m256i part_of(__m128i trits, __m256i magnitude, __m256i sign)
{
    return _mm256_sign_epi8(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(trits), magnitude), sign);
}

/* Triples a, b, c, d of 12 columns to three k-groups a0 a1 a2 b0, b1 b2 c0 c1, c2 d0 d1 d2. */
INLINE void regroup(const __m256i magnitude[4], const __m256i sign[4], __m256i out[3])
{
    const __m128i low_27 = _mm_setr_epi8(0, 27, -27, 0, 27, -27, 0, 27, -27, 0, 27, -27, 0, 27, 0, 0);
    const __m128i rest = _mm_setr_epi8(0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 0, 0);
    const __m128i low_two_9 = _mm_setr_epi8(0, 9, 18, 27, 36, -36, -27, -18, -9, 0, 9, 18, 27, 36, 0, 0);
    const __m128i high = _mm_setr_epi8(0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0);
    const __m128i times_3 = _mm_setr_epi8(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 0, 0);
    const __m256i middle = _mm256_set1_epi8(GROUP_SUMS / 2);
    out[0] = _mm256_add_epi8(_mm256_sign_epi8(magnitude[0], sign[0]), part_of(low_27, magnitude[1], sign[1]));
    out[1] = _mm256_add_epi8(part_of(rest, magnitude[1], sign[1]), part_of(low_two_9, magnitude[2], sign[2]));
    out[2] = _mm256_add_epi8(part_of(high, magnitude[2], sign[2]), part_of(times_3, magnitude[3], sign[3]));
    UNROLL for (int i = 0; i < 3; i++) out[i] = _mm256_add_epi8(out[i], middle);
}

/* 32 rows of six bytes side by side, eight bytes from row to row. */
INLINE void store_indices(const __m256i group[GROUPS], uint8_t *indices)
{
    UNROLL for (int high = 0; high < 2; high++) /* rows 0-7 and 16-23, rows 8-15 and 24-31 */
    {
        __m256i pairs[3];
        UNROLL for (int i = 0; i < 3; i++)
            pairs[i] = high ? _mm256_unpackhi_epi8(group[2 * i], group[2 * i + 1])
                            : _mm256_unpacklo_epi8(group[2 * i], group[2 * i + 1]);
        const __m256i fours[2] = {_mm256_unpacklo_epi16(pairs[0], pairs[1]), _mm256_unpackhi_epi16(pairs[0], pairs[1])};
        const __m256i twos[2] = {_mm256_unpacklo_epi16(pairs[2], pairs[2]), _mm256_unpackhi_epi16(pairs[2], pairs[2])};
        UNROLL for (int i = 0; i < 2; i++)
        {
            __m128i *out = (__m128i *)(indices + (8 * high + 4 * i) * INDICES), *later = out + 8; /* 16 rows */
            _mm256_storeu2_m128i(later, out, _mm256_unpacklo_epi32(fours[i], twos[i]));
            _mm256_storeu2_m128i(later + 1, out + 1, _mm256_unpackhi_epi32(fours[i], twos[i]));
        }
    }
}

/* A step of one row block to the indices of its rows. */
INLINE void split_step(const uint8_t *codes, uint8_t *indices)
{
    UNROLL for (int half = 0; half < HALVES; half++)
    {
        const __m256i *at = (const __m256i *)codes + half;
        __m256i signs = _mm256_load_si256(at + TRIPLES / 2 * HALVES), group[GROUPS];
        UNROLL for (int part = 0; part < 2; part++)
        {
            __m256i magnitude[4], sign[4];
            UNROLL for (int i = 0; i < 4; i++, signs = _mm256_add_epi8(signs, signs))
            {
                magnitude[i] = magnitudes(_mm256_load_si256(at + (part * 4 + i) / 2 * HALVES), i);
                sign[i] = nonzero(signs);
            }
            regroup(magnitude, sign, group + part * 3);
        }
        store_indices(group, indices + half * HALF_ROWS * INDICES);
    }
}
#endif
