/* Activations to tables (T-MAC, arXiv 2407.00088, section 3.2), in plain C: the specification of the other folders.
 * A k-group is 4 consecutive columns; its table holds the 16 signed sums of its activations. */
#include "scalar.h"

#include <float.h>
#include <math.h>

float tmac_quantize_row_scalar(const float *x, int32_t k, int8_t *q)
{
    float amax = 1e-5f;
    for (int32_t c = 0; c < k; c++) {
        float magnitude = fabsf(x[c]);
        if (!(magnitude <= FLT_MAX)) return NAN;
        if (magnitude > amax) amax = magnitude;
    }
    float inverse = 127.0f / amax;
    for (int32_t c = 0; c < k; c++) {
        float rounded = rintf(x[c] * inverse);
        q[c] = (int8_t)(rounded < -128.0f ? -128.0f : rounded > 127.0f ? 127.0f : rounded);
    }
    return amax / 127.0f;
}

/* The largest table entry of a segment: max over its k-groups of |x0| + |x1| + |x2| + |x3|; NaN if one is not finite. */
static float segment_amax(const float *x, int32_t columns)
{
    float amax = 0.0f;
    for (int32_t c = 0; c < columns; c += 4) {
        float sum = (fabsf(x[c]) + fabsf(x[c + 1])) + (fabsf(x[c + 2]) + fabsf(x[c + 3]));
        if (!(sum <= FLT_MAX)) return NAN;
        if (sum > amax) amax = sum;
    }
    return amax;
}

/* 16 lanes, lane j takes the columns congruent to j mod 16; then lanes are added in pairs. */
static float segment_sum(const float *x, int32_t columns)
{
    float lane[16] = {0};
    for (int32_t c = 0; c < columns; c++) lane[c % 16] += x[c];
    for (int half = 8; half > 0; half /= 2)
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

int tmac_lut_build_scalar(const float *x, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                          const tmac_lut *lut)
{
    const int32_t columns = lut->segment_columns;
    for (int32_t s = segment_begin; s < segment_end; s++) {
        float segment[128];
        for (int32_t c = 0; c < columns; c++) segment[c] = s * columns + c < k ? x[s * columns + c] : 0.0f;

        float amax = segment_amax(segment, columns);
        if (isnan(amax)) return 1;
        float inverse = amax >= TMAC_TABLE_AMAX_MIN ? 127.0f / amax : 0.0f;
        lut->half_scales[(int64_t)s * lut->n + t] = 0.5f * (amax / 127.0f);
        lut->sums[(int64_t)s * lut->n + t] = segment_sum(segment, columns);

        for (int32_t c = 0; c < columns; c += 4) {
            int8_t *table = quad_tables(lut, (s * columns + c) / QUAD_COLUMNS, t) + c % QUAD_COLUMNS / 4 * 16;
            const float *group = segment + c;
            for (int v = 0; v < 16; v++) {
                float low = (v & 1 ? group[0] : -group[0]) + (v & 2 ? group[1] : -group[1]);
                float high = (v & 4 ? group[2] : -group[2]) + (v & 8 ? group[3] : -group[3]);
                table[v] = (int8_t)((int8_t)rintf((low + high) * inverse) ^ (lut->fast ? -128 : 0));
            }
        }
    }
    return 0;
}

void tmac_lut_build_exact_scalar(const int8_t *q, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                                 const tmac_lut *lut)
{
    const int32_t columns = lut->segment_columns;
    for (int32_t s = segment_begin; s < segment_end; s++) {
        int32_t total = 0;
        for (int32_t c = s * columns; c < (s + 1) * columns; c += 4) {
            int8_t *lo = quad_tables(lut, c / QUAD_COLUMNS, t) + c % QUAD_COLUMNS / 4 * 16;
            int8_t *hi = lo + TABLE_BYTES;
            int32_t group[4];
            for (int j = 0; j < 4; j++) total += group[j] = c + j < k ? q[c + j] : 0;
            for (int v = 0; v < 16; v++) {
                int32_t sum = 0;
                for (int j = 0; j < 4; j++) sum += v >> j & 1 ? group[j] : -group[j];
                int32_t high = (sum + EXACT_SPLIT / 2 + 16 * EXACT_SPLIT) / EXACT_SPLIT - 16; /* floor for sum >= -528 */
                hi[v] = (int8_t)high;
                lo[v] = (int8_t)(sum - EXACT_SPLIT * high);
            }
        }
        lut->half_scales[(int64_t)s * lut->n + t] = 0.5f;
        lut->sums[(int64_t)s * lut->n + t] = (float)total;
    }
}
