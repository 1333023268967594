/* Ternary AVX-512, the tables of five columns: entry v is the sum of the low three trits of v, one of 27, and of its high
 * two, one of 5 for v >= 0; two word permutations and an addition give 32 entries. */
#ifndef TMAC_ARCH_AVX512_TERNARY_TABLES_H
#define TMAC_ARCH_AVX512_TERNARY_TABLES_H
#include "ternary.h"

/* v = 27 * HIGH + (LOW - 13); 0 above MAX_TRITS. WORDS: in the order that packs_epi16 undoes. */
#define LOW(v) ((v) > MAX_TRITS ? 13 : ((v) + 13) % 27)
#define HIGH(v) ((v) > MAX_TRITS ? 0 : ((v) + 13) / 27)
#define EIGHT(of, v) of(v), of(v + 1), of(v + 2), of(v + 3), of(v + 4), of(v + 5), of(v + 6), of(v + 7)
#define WORDS(of, v) {EIGHT(of, v), EIGHT(of, v + 16), EIGHT(of, v + 32), EIGHT(of, v + 48)}
static const _Alignas(64) int16_t low_of[4][32] = {WORDS(LOW, 0), WORDS(LOW, 8), WORDS(LOW, 64), WORDS(LOW, 72)};
static const _Alignas(64) int16_t high_of[4][32] = {WORDS(HIGH, 0), WORDS(HIGH, 8), WORDS(HIGH, 64), WORDS(HIGH, 72)};

/* Bit i of low_trits[j]: trit j of i - 13 is 1, or -1; of high_trits[j]: trit j of i. */
static const __mmask32 low_trits[3][2] = {{0x4924924, 0x1249249}, {0x70381c0, 0x1c0e07}, {0x7fc0000, 0x1ff}};
static const __mmask32 high_trits[2][2] = {{0x12, 0x04}, {0x1c, 0}};

INLINE __m512i add_trit(__m512i sums, const __mmask32 trits[2], int8_t x)
{
    const __m512i value = _mm512_set1_epi16(x);
    sums = _mm512_mask_add_epi16(sums, trits[0], sums, value);
    return _mm512_mask_sub_epi16(sums, trits[1], sums, value);
}

INLINE void build_group(const int8_t *x, int8_t *tables)
{
    const __m512i remainder = _mm512_set1_epi16(EXACT_SPLIT - 1), half = _mm512_set1_epi8(EXACT_SPLIT / 2);
    __m512i low = _mm512_set1_epi16(EXACT_SPLIT / 2), high = _mm512_setzero_si512(), sums[4];
    UNROLL for (int j = 0; j < 3; j++) low = add_trit(low, low_trits[j], x[j]);
    UNROLL for (int j = 0; j < 2; j++) high = add_trit(high, high_trits[j], x[3 + j]);
    UNROLL for (int i = 0; i < 4; i++)
        sums[i] = _mm512_add_epi16(_mm512_permutexvar_epi16(_mm512_load_si512(low_of[i]), low),
                                   _mm512_permutexvar_epi16(_mm512_load_si512(high_of[i]), high));
    UNROLL for (int i = 0; i < 2; i++)
    {
        const __m512i a = sums[2 * i], b = sums[2 * i + 1];
        const __m512i lo = _mm512_packs_epi16(_mm512_and_si512(a, remainder), _mm512_and_si512(b, remainder));
        const __m512i hi = _mm512_packs_epi16(_mm512_srai_epi16(a, 5), _mm512_srai_epi16(b, 5));
        _mm512_store_si512(tables + i * 64, _mm512_sub_epi8(lo, half));
        _mm512_store_si512(tables + TERNARY_TABLE_BYTES + i * 64, hi);
    }
}

/* The tables of a step. x: its activations. */
INLINE void build_step(const int8_t *x, int8_t *tables)
{
    for (int g = 0; g < TERNARY_GROUPS; g++) build_group(x + g * TRITS, tables + g * 2 * TERNARY_TABLE_BYTES);
}
#endif
