/* Ternary AVX-512, many tokens: tables with a row of 32 tokens for each sum of a k-group (4 columns), and the indices of
 * those rows, made from four codes of five columns each. */
#ifndef TMAC_ARCH_AVX512_TERNARY_GROUPS_H
#define TMAC_ARCH_AVX512_TERNARY_GROUPS_H
#include "ternary.h"

enum {
    FEW_TOKENS = 16, /* up to which tokens have tables of codes; above it lut->tables has their activations */
    TILE_TOKENS = 32,
    UNIT_CODES = 4,
    UNIT_COLUMNS = UNIT_CODES * TRITS,
    GROUP_COLUMNS = 4,
    GROUPS = UNIT_COLUMNS / GROUP_COLUMNS,
    GROUP_SUMS = 81,
    INDICES = 8, /* bytes of a row's indices: GROUPS of them, and three that nobody reads */
    TERNARY_SCRATCH_BYTES = 526 << 10
};

/* The last unit may reach past the last step: its codes are 0 there. */
INLINE int32_t ternary_units(int32_t steps) { return (steps * TERNARY_GROUPS - 1) / UNIT_CODES + 1; }

/* Bytes from token to token of the activations in lut->tables: whole units. */
INLINE int32_t activation_bytes(int32_t k) { return ternary_units((k - 1) / TERNARY_COLUMNS + 1) * UNIT_COLUMNS; }

/* Where the tokens of a tile begin; those past the last are the last's again. */
typedef struct {
    const int8_t *x;
    __m512i offsets[TILE_TOKENS / 16];
} token_tile;

INLINE token_tile make_tile(const tmac_lut *lut, int32_t token, int32_t row_bytes)
{
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i last = _mm512_set1_epi32(lut->n - 1 - token), bytes = _mm512_set1_epi32(row_bytes);
    token_tile tile = {.x = lut->tables + (int64_t)token * row_bytes};
    UNROLL for (int i = 0; i < TILE_TOKENS / 16; i++)
    {
        const __m512i tokens = _mm512_min_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(16 * i)), last);
        tile.offsets[i] = _mm512_mullo_epi32(tokens, bytes);
    }
    return tile;
}

/* columns[j]: column `column` + j of every token of a tile, int16. */
INLINE void load_columns(const token_tile *tile, int32_t column, __m512i columns[GROUP_COLUMNS])
{
    __m512i bytes[TILE_TOKENS / 16]; /* of a token: the four columns in the bytes of a lane */
    UNROLL for (int i = 0; i < TILE_TOKENS / 16; i++)
        bytes[i] = _mm512_i32gather_epi32(tile->offsets[i], (const void *)(tile->x + column), 1);
    UNROLL for (int j = 0; j < GROUP_COLUMNS; j++)
    {
        __m256i half[TILE_TOKENS / 16];
        UNROLL for (int i = 0; i < TILE_TOKENS / 16; i++)
            half[i] = _mm512_cvtepi32_epi16(_mm512_srai_epi32(_mm512_slli_epi32(bytes[i], 24 - 8 * j), 24));
        columns[j] = _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
    }
}

/* Row i of the table: sum over j of (digit j of i in base 3, less 1) * x[j]. */
INLINE void build_sums(const __m512i x[GROUP_COLUMNS], __m512i *table)
{
    __m512i third = _mm512_sub_epi16(_mm512_setzero_si512(), x[3]);
    for (int i = 0; i < 3; i++, third = _mm512_add_epi16(third, x[3])) {
        __m512i second = _mm512_sub_epi16(third, x[2]);
        for (int j = 0; j < 3; j++, second = _mm512_add_epi16(second, x[2])) {
            __m512i first = _mm512_sub_epi16(second, x[1]);
            UNROLL for (int l = 0; l < 3; l++, first = _mm512_add_epi16(first, x[1]), table += 3)
            {
                _mm512_store_si512(table, _mm512_sub_epi16(first, x[0]));
                _mm512_store_si512(table + 1, first);
                _mm512_store_si512(table + 2, _mm512_add_epi16(first, x[0]));
            }
        }
    }
}

/* The tables of the unit that begins with a column, [GROUPS][GROUP_SUMS][TILE_TOKENS]. */
INLINE void build_tables(const token_tile *tile, int32_t column, int16_t *tables)
{
    for (int g = 0; g < GROUPS; g++, column += GROUP_COLUMNS, tables += GROUP_SUMS * TILE_TOKENS) {
        __m512i four[GROUP_COLUMNS];
        load_columns(tile, column, four);
        build_sums(four, (__m512i *)tables);
    }
}

/* What the trits of the code v = t0 + 3 t1 + 9 t2 + 27 t3 + 81 t4 add to an index; 0 above MAX_TRITS. */
#define TRIT(v, power) (((v) + MAX_TRITS) / (power) % 3 - 1)
#define T0(v) TRIT(v, 1)
#define T1(v) TRIT(v, 3)
#define T2(v) TRIT(v, 9)
#define T3(v) TRIT(v, 27)
#define T4(v) TRIT(v, 81)
#define FIRST_A(v) (T0(v) + 3 * T1(v) + 9 * T2(v) + 27 * T3(v))
#define SECOND_A(v) T4(v)
#define SECOND_B(v) (3 * T0(v) + 9 * T1(v) + 27 * T2(v))
#define THIRD_B(v) (T3(v) + 3 * T4(v))
#define THIRD_C(v) (9 * T0(v) + 27 * T1(v))
#define FOURTH_C(v) (T2(v) + 3 * T3(v) + 9 * T4(v))
#define FOURTH_D(v) (27 * T0(v))
#define FIFTH_D(v) (T1(v) + 3 * T2(v) + 9 * T3(v) + 27 * T4(v))
#define ONE(of, v) ((v) > MAX_TRITS ? 0 : of(v))
#define FOUR(of, v) ONE(of, v), ONE(of, (v) + 1), ONE(of, (v) + 2), ONE(of, (v) + 3)
#define SIXTEEN(of, v) FOUR(of, v), FOUR(of, (v) + 4), FOUR(of, (v) + 8), FOUR(of, (v) + 12)
#define ALL(of)                                                                                                       \
    {SIXTEEN(of, 0),  SIXTEEN(of, 16), SIXTEEN(of, 32), SIXTEEN(of, 48),                                              \
     SIXTEEN(of, 64), SIXTEEN(of, 80), SIXTEEN(of, 96), SIXTEEN(of, 112)}

/* Codes a, b, c, d of 20 columns to five k-groups: a0 a1 a2 a3, a4 b0 b1 b2, b3 b4 c0 c1, c2 c3 c4 d0, d1 d2 d3 d4. Two
 * parts of each code, the earlier group's first. */
static const _Alignas(64) int8_t index_parts[UNIT_CODES][2][128] = {{ALL(FIRST_A), ALL(SECOND_A)},
                                                                     {ALL(SECOND_B), ALL(THIRD_B)},
                                                                     {ALL(THIRD_C), ALL(FOURTH_C)},
                                                                     {ALL(FOURTH_D), ALL(FIFTH_D)}};

/* parts[v] with the sign of v, of 64 codes. */
INLINE __m512i index_part(const int8_t *parts, __m512i codes)
{
    const __m512i part = _mm512_permutex2var_epi8(_mm512_load_si512(parts), codes, _mm512_load_si512(parts + 64));
    return _mm512_mask_sub_epi8(part, _mm512_movepi8_mask(codes), _mm512_setzero_si512(), part);
}

INLINE void regroup(const __m512i codes[UNIT_CODES], __m512i groups[GROUPS])
{
    const __m512i middle = _mm512_set1_epi8(GROUP_SUMS / 2);
    UNROLL for (int g = 0; g < GROUPS; g++) groups[g] = middle;
    UNROLL for (int i = 0; i < UNIT_CODES; i++)
    {
        groups[i] = _mm512_add_epi8(groups[i], index_part(index_parts[i][0], codes[i]));
        groups[i + 1] = _mm512_add_epi8(groups[i + 1], index_part(index_parts[i][1], codes[i]));
    }
}

/* 64 rows, eight bytes from row to row, in the order that unpacking leaves: row 16 l + 2 i + e at 8 i + 2 l + e. */
INLINE int32_t row_place(int32_t row) { return row % 16 / 2 * 8 + row / 16 * 2 + row % 2; }

INLINE void store_indices(const __m512i groups[GROUPS], uint8_t *indices)
{
    __m512i *out = (__m512i *)indices;
    UNROLL for (int high = 0; high < 2; high++)
    {
        __m512i pairs[3];
        UNROLL for (int i = 0; i < 3; i++)
        {
            const __m512i a = groups[2 * i], b = groups[i < 2 ? 2 * i + 1 : 2 * i];
            pairs[i] = high ? _mm512_unpackhi_epi8(a, b) : _mm512_unpacklo_epi8(a, b);
        }
        const __m512i fours[2] = {_mm512_unpacklo_epi16(pairs[0], pairs[1]), _mm512_unpackhi_epi16(pairs[0], pairs[1])};
        const __m512i twos[2] = {_mm512_unpacklo_epi16(pairs[2], pairs[2]), _mm512_unpackhi_epi16(pairs[2], pairs[2])};
        UNROLL for (int i = 0; i < 2; i++)
        {
            _mm512_store_si512(out + 4 * high + 2 * i, _mm512_unpacklo_epi32(fours[i], twos[i]));
            _mm512_store_si512(out + 4 * high + 2 * i + 1, _mm512_unpackhi_epi32(fours[i], twos[i]));
        }
    }
}

/* The indices of row block `block` of a slab for one unit. */
INLINE void split_unit(const uint8_t *slab, int32_t blocks, int32_t steps, int32_t block, int32_t unit,
                       uint8_t *indices)
{
    __m512i codes[UNIT_CODES], groups[GROUPS];
    UNROLL for (int i = 0; i < UNIT_CODES; i++)
    {
        const int32_t code = unit * UNIT_CODES + i, step = code / TERNARY_GROUPS, group = code % TERNARY_GROUPS;
        codes[i] = step < steps ? _mm512_load_si512(slab + tmac_ternary_offset(blocks, steps, block, step, group))
                                : _mm512_setzero_si512();
    }
    regroup(codes, groups);
    store_indices(groups, indices);
}
#endif
