/* Activations of ternary matrices with AVX-512: tables of codes for a few tokens; for one, and for many, activations only
 * move to where the kernels build their own tables from. */
#include "ternary_groups.h"
#include "ternary_tables.h"

#include <string.h>

/* Steps [step_begin, step_end) of one of many tokens. Nothing is written past the last step, where codes are 0, and past
 * the last token, whose sums nobody stores. */
static void place_activations(const int8_t *q, int32_t k, int32_t t, int32_t step_begin, int32_t step_end,
                              const tmac_lut *lut)
{
    const int32_t units = ternary_units((k - 1) / TERNARY_COLUMNS + 1), begin = step_begin * TERNARY_COLUMNS;
    int8_t *out = lut->tables + activation_offset(units, t, begin);
    for (int32_t c = begin; c < step_end * TERNARY_COLUMNS; c++, out += TILE_TOKENS) *out = c < k ? q[c] : 0;
}

void tmac_ternary_build_avx512(const int8_t *q, int32_t k, int32_t t, int32_t step_begin, int32_t step_end,
                               const tmac_lut *lut)
{
    if (lut->n > FEW_TOKENS) {
        place_activations(q, k, t, step_begin, step_end, lut);
        return;
    }
    for (int32_t s = step_begin; s < step_end; s++) {
        int8_t x[TERNARY_COLUMNS] = {0};
        const int32_t c = s * TERNARY_COLUMNS;
        memcpy(x, q + c, (size_t)at_most(TERNARY_COLUMNS, k - c));
        if (lut->n == 1) memcpy(lut->tables + c, x, sizeof x);
        else build_step(x, lut->tables + ((int64_t)s * lut->n + t) * TERNARY_STEP_TABLES);
    }
}
