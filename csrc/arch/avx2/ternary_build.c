/* Activations of ternary matrices with AVX2: tables of triples for a few tokens; for many their int8 rows, padded to
 * whole steps, from which ternary_gemm.c makes its own tables. */
#include "ternary.h"

#include <string.h>

/* sums[v] = t0 x0 + t1 x1 + t2 x2 for v = 0 .. 13. */
INLINE void build_triple(const int8_t *x, int8_t *table)
{
    const __m256i t0 = _mm256_setr_epi16(0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, 0, 0);
    const __m256i t1 = _mm256_setr_epi16(0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 0, 0);
    const __m256i t2 = _mm256_setr_epi16(0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0);
    __m256i sums = _mm256_sign_epi16(_mm256_set1_epi16(x[0]), t0);
    sums = _mm256_add_epi16(sums, _mm256_sign_epi16(_mm256_set1_epi16(x[1]), t1));
    sums = _mm256_add_epi16(sums, _mm256_sign_epi16(_mm256_set1_epi16(x[2]), t2));
    /* hi = round(sum / 31): |sum| <= 384 puts the product off by less than 0.001; the nearest tie is 0.016 away */
    const __m256i hi = _mm256_mulhrs_epi16(sums, _mm256_set1_epi16(32768 / TRIPLE_SPLIT));
    const __m256i lo = _mm256_sub_epi16(sums, _mm256_mullo_epi16(hi, _mm256_set1_epi16(TRIPLE_SPLIT)));
    _mm256_store_si256((__m256i *)table, _mm256_permute4x64_epi64(_mm256_packs_epi16(lo, hi), 0xd8));
}

void tmac_ternary_build_avx2(const int8_t *q, int32_t k, int32_t t, int32_t step_begin, int32_t step_end,
                             const tmac_lut *lut)
{
    const int32_t row_bytes = ((k - 1) / TRIPLE_STEP_COLUMNS + 1) * TRIPLE_STEP_COLUMNS;
    for (int32_t s = step_begin; s < step_end; s++) {
        const int32_t c = s * TRIPLE_STEP_COLUMNS;
        int8_t x[TRIPLE_STEP_COLUMNS] = {0};
        memcpy(x, q + c, (size_t)at_most(TRIPLE_STEP_COLUMNS, k - c));
        if (lut->n > FEW_TOKENS) {
            memcpy(lut->tables + (int64_t)t * row_bytes + c, x, sizeof x);
            continue;
        }
        int8_t *tables = lut->tables + ((int64_t)s * lut->n + t) * TRIPLE_STEP_TABLES;
        for (int g = 0; g < TRIPLES; g++) build_triple(x + g * TRIPLE_COLUMNS, tables + g * TRIPLE_TABLE_BYTES);
    }
}
