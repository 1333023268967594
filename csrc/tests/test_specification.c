/* The scalar kernels, which are the specification, against plain dot products of weights decoded by layout.h.
 * Usage: test_specification [seed] */
#include <float.h>

#include "kernel_cases.h"

static double half_value(const uint8_t *at)
{
    const int bits = at[0] | at[1] << 8, exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return bits >> 15 ? -magnitude : magnitude;
}

/* Code, scale and zero point of one weight, by the addresses of layout.h. */
static int weight_code(const tmac_shape *s, const uint8_t *tiles, int32_t r, int32_t c, double *scale, double *zero)
{
    const int32_t columns = tmac_segment_columns(s), bits = s->bits;
    const uint8_t *block = tiles + r / 64 * tmac_block_bytes(s), *segment = block + c / columns * tmac_segment_bytes(s);
    const uint8_t *step = segment + c % columns / 32 * bits * 256, *tail = segment + columns / 32 * bits * 256;
    const int32_t quad = c % 32 / 16, group = c % 16 / 4;
    int code = 0;
    for (int p = 0; p < bits; p++) {
        const int odd = bits % 2 && p == bits - 1;
        const int byte = step[(odd ? p : p - p % 2 + quad) * 256 + r % 64 / 16 * 64 + r % 16 * 4 + group];
        code |= (byte >> (odd ? quad * 4 : p % 2 * 4) >> c % 4 & 1) << p;
    }
    float row[2] = {0, s->zero};
    if (!s->group_size) {
        memcpy(&row[0], block + tmac_n_segments(s) * tmac_segment_bytes(s) + r % 64 * 4, 4);
        if (s->has_zeros) memcpy(&row[1], block + tmac_n_segments(s) * tmac_segment_bytes(s) + 256 + r % 64 * 4, 4);
    }
    *scale = s->group_size ? half_value(tail + r % 64 * 2) : (double)row[0];
    *zero = s->group_size && s->has_zeros ? half_value(tail + 128 + r % 64 * 2) : (double)row[1];
    return code;
}

/* Bound: half a table unit per lookup (int8 tables), and k + 8 roundings of float32 on the sum of magnitudes. Fast
 * aggregation: both levels of an average of four entries round up by 0 to 1/2, of which 1/4 is subtracted. */
static void test_specification(const tmac_kernels *isa, tmac_shape s, int tables, int round)
{
    const int exact = tables == TMAC_TABLES_EXACT;
    const double rounding = tables == TMAC_TABLES_FAST ? 0.5 : 0;
    int32_t n;
    guarded x;
    random_case(&s, &n, tables, round);
    owned_lut o = random_lut(isa, &s, n, tables, round % 2 ? MIXED : OUTLIER, &x);
    guarded tiles = random_tiles(&s, 0), y = product(isa, &s, &tiles, &o.lut, 0, s.m);
    for (int32_t t = 0; t < n; t++)
        for (int32_t r = 0; r < s.m; r++) {
            double sum = 0, magnitude = 0, bound = 0;
            for (int32_t c = 0; c < s.k; c++) {
                double scale, zero, a = exact ? ((int8_t *)x.data)[t * s.k + c] : ((float *)x.data)[t * s.k + c];
                int code = weight_code(&s, tiles.data, r, c, &scale, &zero);
                sum += (code - zero) * scale * a;
                magnitude += (fabs(zero) + (1 << s.bits)) * fabs(scale * a);
                const double unit = (1 << s.bits) * fabs(scale) * o.lut.half_scales[c / o.lut.segment_columns * n + t];
                if (!exact && c % 4 == 0) bound += 0.5 * unit;
                if (c % o.lut.segment_columns == 0) bound += o.lut.segment_columns / 4 * rounding * unit;
            }
            bound = (bound + magnitude * (s.k + 8) * FLT_EPSILON) * o.lut.token_scales[t] + FLT_MIN;
            const double error = fabs(sum * o.lut.token_scales[t] - ((float *)y.data)[t * s.m + r]);
            if (!(error <= bound)) fail(isa->name, "dot product");
        }
    lut_free(&o), guarded_free(&x), guarded_free(&tiles), guarded_free(&y);
}

int main(int argc, char **argv)
{
    seed_from(argc, argv);
    for_every_kind(test_specification, &tmac_kernels_scalar, 1);
    return 0;
}
