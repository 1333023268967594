/* Activations to tables of five columns, in plain C: the specification of the other folders. */
#include "scalar.h"

void tmac_ternary_build_scalar(const int8_t *q, int32_t k, int32_t t, int32_t step_begin, int32_t step_end,
                               const tmac_lut *lut)
{
    for (int32_t s = step_begin; s < step_end; s++) {
        int8_t *tables = lut->tables + ((int64_t)s * lut->n + t) * TERNARY_STEP_TABLES;
        for (int32_t g = 0; g < TERNARY_GROUPS; g++) {
            const int32_t c = s * TERNARY_COLUMNS + g * TRITS;
            int8_t *lo = tables + g * 2 * TERNARY_TABLE_BYTES, *hi = lo + TERNARY_TABLE_BYTES;
            for (int32_t v = 0; v < TERNARY_TABLE_BYTES; v++) {
                int32_t sum = 0, digits = v + MAX_TRITS; /* base 3: digit j is t[j] + 1 */
                for (int32_t j = 0; j < TRITS && v <= MAX_TRITS; j++, digits /= 3)
                    sum += (digits % 3 - 1) * (c + j < k ? q[c + j] : 0);
                const int32_t high = (sum + EXACT_SPLIT / 2 + 32 * EXACT_SPLIT) / EXACT_SPLIT - 32; /* floor */
                hi[v] = (int8_t)high;
                lo[v] = (int8_t)(sum - EXACT_SPLIT * high);
            }
        }
    }
}
