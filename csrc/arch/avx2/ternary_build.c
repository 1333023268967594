/* Activations of ternary matrices with AVX2: tables of triples for a few tokens; for one and for many their int8
 * rows, padded to whole steps, from which the kernels make their own tables. */
#include "ternary.h"

#include <string.h>

void tmac_ternary_build_avx2(const int8_t *q, int32_t k, int32_t t, int32_t step_begin, int32_t step_end,
                             const tmac_lut *lut)
{
    const int32_t row_bytes = ((k - 1) / TRIPLE_STEP_COLUMNS + 1) * TRIPLE_STEP_COLUMNS;
    for (int32_t s = step_begin; s < step_end; s++) {
        const int32_t c = s * TRIPLE_STEP_COLUMNS;
        int8_t x[TRIPLE_STEP_COLUMNS] = {0};
        memcpy(x, q + c, (size_t)at_most(TRIPLE_STEP_COLUMNS, k - c));
        if (lut->n == 1 || lut->n > FEW_TOKENS) {
            memcpy(lut->tables + (int64_t)t * row_bytes + c, x, sizeof x);
            continue;
        }
        int8_t *tables = lut->tables + ((int64_t)s * lut->n + t) * TRIPLE_STEP_TABLES;
        for (int g = 0; g < TRIPLES; g++) build_triple(x + g * TRIPLE_COLUMNS, tables + g * TRIPLE_TABLE_BYTES);
    }
}
