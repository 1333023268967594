/* Activations of ternary matrices with AVX-512: tables of codes for a few tokens; for one and for many their int8 rows,
 * from which the kernels make their own tables. Past the last step, where codes are 0, a row holds anything. */
#include "ternary_groups.h"
#include "ternary_tables.h"

#include <string.h>

void tmac_ternary_build_avx512(const int8_t *q, int32_t k, int32_t t, int32_t step_begin, int32_t step_end,
                               const tmac_lut *lut)
{
    for (int32_t s = step_begin; s < step_end; s++) {
        int8_t x[TERNARY_COLUMNS] = {0};
        const int32_t c = s * TERNARY_COLUMNS;
        memcpy(x, q + c, (size_t)at_most(TERNARY_COLUMNS, k - c));
        if (lut->n == 1 || lut->n > FEW_TOKENS)
            memcpy(lut->tables + (int64_t)t * activation_bytes(k) + c, x, sizeof x);
        else build_step(x, lut->tables + ((int64_t)s * lut->n + t) * TERNARY_STEP_TABLES);
    }
}
