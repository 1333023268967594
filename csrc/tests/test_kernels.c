/* Every operation of every compiled instruction set against the scalar one, bit for bit, on hostile input; and the
 * scalar one against a plain dot product of decoded weights. Usage: test_kernels [seed] */
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"

enum { GUARD = 64, CANARY = 0xa5 };

static uint64_t seed = 0x9e3779b97f4a7c15u, state;
static char where[256]; /* the parameters of the running case */

static uint32_t random_u32(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 32);
}
static int32_t random_below(int32_t n) { return (int32_t)(random_u32() % (uint32_t)n); }
static float random_float(void) { return (float)random_u32() / 2147483648.0f - 1.0f; }

static void fail(const char *isa, const char *what)
{
    fprintf(stderr, "FAILED %s: %s differs\n  seed %" PRIu64 ", %s\n", isa, what, seed, where);
    exit(1);
}

/* A buffer between canaries; data is 64-byte aligned plus `shift`. */
typedef struct {
    uint8_t *base, *data;
    size_t bytes, shift;
} guarded;

static guarded guarded_alloc(size_t bytes, size_t shift)
{
    size_t whole = (GUARD + shift + bytes + GUARD + 63) / 64 * 64;
    guarded g = {aligned_alloc(64, whole), NULL, bytes, shift};
    if (!g.base) abort();
    memset(g.base, CANARY, whole);
    g.data = g.base + GUARD + shift;
    return g;
}
static void guarded_check(const guarded *g, const char *isa, const char *what)
{
    for (size_t i = 0; i < GUARD + g->shift; i++)
        if (g->base[i] != CANARY) fail(isa, what);
    for (size_t i = 0; i < GUARD; i++)
        if (g->data[g->bytes + i] != CANARY) fail(isa, what);
}
static void guarded_free(guarded *g) { free(g->base); }
static void check_equal(const guarded *a, const guarded *b, const char *isa, const char *what)
{
    if (memcmp(a->data, b->data, a->bytes)) fail(isa, what);
    guarded_check(b, isa, what);
}

/* ---- activations ------------------------------------------------------------------------------------------ */

enum { MIXED, OUTLIER, ZERO, LOW, HIGH, DENORMAL, HUGE_SPREAD, N_PATTERNS };

static void fill_floats(float *x, int32_t k, int pattern)
{
    for (int32_t c = 0; c < k; c++) {
        float r = random_float();
        x[c] = pattern == ZERO ? (c % 2 ? -0.0f : 0.0f)
               : pattern == LOW ? -1.0f
               : pattern == HIGH ? 1.0f
               : pattern == DENORMAL ? r * 1e-40f
               : pattern == HUGE_SPREAD ? ldexpf(r, random_below(200) - 100)
                                        : r;
    }
    if (pattern == OUTLIER) x[random_below(k)] = 1e30f;
}
static void fill_bytes(int8_t *q, int32_t k, int pattern)
{
    for (int32_t c = 0; c < k; c++)
        q[c] = pattern == LOW ? -128 : pattern == HIGH ? 127 : pattern == ZERO ? 0 : (int8_t)random_below(256);
    if (pattern == OUTLIER) memset(q, 0, (size_t)k), q[random_below(k)] = -128;
}

/* ---- tables ------------------------------------------------------------------------------------------------ */

typedef struct {
    guarded tables, half_scales, sums, totals, token_scales;
    tmac_lut lut;
} owned_lut;

static owned_lut lut_alloc(int32_t k, int32_t n, int32_t segment_columns, int exact)
{
    const int32_t padded = (k + 127) / 128 * 128, n_segments = padded / segment_columns;
    const size_t floats = (size_t)n * sizeof(float);
    owned_lut o = {guarded_alloc((size_t)padded / QUAD_COLUMNS * (size_t)n * (size_t)(1 + exact) * TABLE_BYTES, 0),
                   guarded_alloc((size_t)n_segments * floats, 4), guarded_alloc((size_t)n_segments * floats, 4),
                   guarded_alloc(floats, 4), guarded_alloc(floats, 4), {0}};
    o.lut = (tmac_lut){n, segment_columns, exact, (int8_t *)o.tables.data, (float *)o.half_scales.data,
                       (float *)o.sums.data, (float *)o.totals.data, (float *)o.token_scales.data};
    return o;
}
static void lut_free(owned_lut *o)
{
    guarded_free(&o->tables), guarded_free(&o->half_scales), guarded_free(&o->sums);
    guarded_free(&o->totals), guarded_free(&o->token_scales);
}

/* Tables of n tokens; x: float or int8 (n, k). Segments in two calls, as threads share them. */
static void lut_fill(const tmac_kernels *isa, owned_lut *o, const void *x, int32_t k)
{
    const tmac_lut *lut = &o->lut;
    const int32_t n_segments = (k + 127) / 128 * 128 / lut->segment_columns, half = n_segments / 2;
    for (int32_t t = 0; t < lut->n; t++) {
        for (int32_t part = 0; part < 2; part++) {
            const int32_t begin = part ? half : 0, end = part ? n_segments : half;
            if (lut->exact)
                isa->lut_build_exact((const int8_t *)x + (int64_t)t * k, k, t, begin, end, lut);
            else if (isa->lut_build((const float *)x + (int64_t)t * k, k, t, begin, end, lut))
                fail(isa->name, "lut_build's status");
        }
        lut->totals[t] = 0.0f;
        for (int32_t s = 0; s < n_segments; s++) lut->totals[t] += lut->sums[(int64_t)s * lut->n + t];
        lut->token_scales[t] = lut->exact ? 0.37f + (float)t : 1.0f;
    }
}

static void test_quantize_row(const tmac_kernels *isa)
{
    for (int32_t k = 1; k < 150; k += k < 35 ? 1 : 29)
        for (int pattern = 0; pattern < N_PATTERNS; pattern++) {
            snprintf(where, sizeof where, "quantize_row k %d pattern %d", k, pattern);
            guarded x = guarded_alloc((size_t)k * sizeof(float), 4), q = guarded_alloc((size_t)k, 3), r = guarded_alloc((size_t)k, 3);
            fill_floats((float *)x.data, k, pattern);
            float want = tmac_kernels_scalar.quantize_row((float *)x.data, k, (int8_t *)r.data);
            float got = isa->quantize_row((float *)x.data, k, (int8_t *)q.data);
            if (memcmp(&want, &got, sizeof got)) fail(isa->name, "scale");
            check_equal(&r, &q, isa->name, "codes");
            ((float *)x.data)[random_below(k)] = pattern % 2 ? NAN : -INFINITY;
            if (!isnan(isa->quantize_row((float *)x.data, k, (int8_t *)q.data))) fail(isa->name, "NaN");
            guarded_free(&x), guarded_free(&q), guarded_free(&r);
        }
}

static void test_lut_build(const tmac_kernels *isa)
{
    static const int32_t columns[] = {1, 3, 16, 17, 31, 32, 100, 127, 128, 129, 255, 383};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        for (int32_t segment = 32; segment <= 128; segment *= 2)
            for (int pattern = 0; pattern < N_PATTERNS; pattern++)
                for (int exact = 0; exact < 2; exact++) {
                    const int32_t k = columns[i], n = 1 + pattern % 3;
                    snprintf(where, sizeof where, "lut_build k %d n %d segment %d exact %d pattern %d", k, n, segment, exact, pattern);
                    guarded x = guarded_alloc((size_t)(k * n) * (exact ? 1 : sizeof(float)), exact ? 1 : 4);
                    if (exact) fill_bytes((int8_t *)x.data, k * n, pattern);
                    else fill_floats((float *)x.data, k * n, pattern);
                    owned_lut want = lut_alloc(k, n, segment, exact), got = lut_alloc(k, n, segment, exact);
                    lut_fill(&tmac_kernels_scalar, &want, x.data, k);
                    lut_fill(isa, &got, x.data, k);
                    check_equal(&want.tables, &got.tables, isa->name, "tables");
                    check_equal(&want.half_scales, &got.half_scales, isa->name, "half_scales");
                    check_equal(&want.sums, &got.sums, isa->name, "sums");
                    const int32_t bad = random_below(k);
                    if (!exact) {
                        ((float *)x.data)[bad] = pattern % 2 ? NAN : INFINITY;
                        if (!isa->lut_build((float *)x.data, k, 0, bad / segment, bad / segment + 1, &got.lut))
                            fail(isa->name, "lut_build's status for NaN");
                    }
                    lut_free(&want), lut_free(&got), guarded_free(&x);
                }
}

/* ---- products ------------------------------------------------------------------------------------------------ */

/* Random tiles with finite scales and zero points; fill 1, 2: all codes lowest, highest. */
static guarded random_tiles(const tmac_shape *s, int fill)
{
    const int64_t segment_bytes = tmac_segment_bytes(s), weight_bytes = tmac_steps_per_segment(s) * s->bits * VECTOR_BYTES;
    guarded g = guarded_alloc((size_t)(tmac_n_blocks(s) * tmac_block_bytes(s)), 0);
    uint8_t *at = g.data;
    for (int32_t b = 0; b < tmac_n_blocks(s); b++) {
        for (int32_t i = 0; i < tmac_n_segments(s); i++, at += segment_bytes) {
            for (int64_t j = 0; j < weight_bytes; j++) at[j] = fill == 1 ? 0 : fill == 2 ? 0xff : (uint8_t)random_u32();
            for (int64_t j = weight_bytes; j < segment_bytes; j += 2) { /* float16 of every exponent but the last */
                uint16_t half = (uint16_t)(random_u32() & 0xbbff);
                memcpy(at + j, &half, 2);
            }
        }
        for (int j = 0; !s->group_size && j < 64 * (1 + s->has_zeros); j++, at += 4) {
            float value = random_float();
            memcpy(at, &value, 4);
        }
    }
    return g;
}

/* The tiles in the order of an instruction set: its `reorder`, step by step. */
static guarded reordered_tiles(const tmac_kernels *isa, const tmac_shape *s, const guarded *tiles)
{
    guarded g = guarded_alloc(tiles->bytes, 0);
    memcpy(g.data, tiles->data, tiles->bytes);
    for (int32_t b = 0; isa->reorder && b < tmac_n_blocks(s); b++)
        for (int32_t i = 0; i < tmac_n_segments(s) * tmac_steps_per_segment(s); i++) {
            const int32_t segment = i / tmac_steps_per_segment(s), step = i % tmac_steps_per_segment(s);
            const int64_t at = b * tmac_block_bytes(s) + segment * tmac_segment_bytes(s) + step * s->bits * VECTOR_BYTES;
            isa->reorder(s->bits, tiles->data + at, g.data + at);
        }
    return g;
}

/* y (n, ldy) by gemv where n is 1 and split is 0, otherwise by gemm over the panels [0, split), [split, n_segments);
 * row blocks in two calls. */
static guarded product(const tmac_kernels *isa, const tmac_shape *s, const guarded *tiles, const tmac_lut *lut,
                       int32_t split, int32_t ldy)
{
    guarded y = guarded_alloc((size_t)((lut->n - 1) * ldy + s->m) * sizeof(float), 4);
    float *out = (float *)y.data;
    const int32_t blocks = tmac_n_blocks(s), half = blocks / 2, segments = tmac_n_segments(s);
    for (int part = 0; part < 2; part++) {
        const int32_t begin = part ? half : 0, end = part ? blocks : half;
        if (lut->n == 1 && split == 0) {
            isa->gemv(s, tiles->data, lut, begin, end, out);
        } else {
            if (split) isa->gemm(s, tiles->data, lut, begin, end, 0, split, out, ldy);
            if (split < segments) isa->gemm(s, tiles->data, lut, begin, end, split, segments, out, ldy);
        }
    }
    return y;
}

static void random_case(tmac_shape *s, int32_t *n, int exact, int round)
{
    static const int32_t tokens[] = {1, 1, 1, 1, 2, 3, 7, 8, 9, 64, 65};
    *n = tokens[round % 11];
    s->m = 1 + random_below(*n > 9 ? 70 : 200);
    s->k = 1 + random_below(*n > 9 ? 140 : 400);
    s->zero = round % 3 ? (float)(1 << (s->bits - 1)) : 0.5f;
    snprintf(where, sizeof where, "m %d k %d bits %d group_size %d has_zeros %d zero %g exact %d n %d round %d", s->m, s->k,
             s->bits, s->group_size, s->has_zeros, (double)s->zero, exact, *n, round);
}

/* Activations in x, their tables by `isa`. */
static owned_lut random_lut(const tmac_kernels *isa, const tmac_shape *s, int32_t n, int exact, int pattern, guarded *x)
{
    *x = guarded_alloc((size_t)(n * s->k) * (exact ? 1 : sizeof(float)), exact ? 1 : 4);
    if (exact) fill_bytes((int8_t *)x->data, n * s->k, pattern);
    else fill_floats((float *)x->data, n * s->k, pattern);
    owned_lut o = lut_alloc(s->k, n, tmac_segment_columns(s), exact);
    lut_fill(isa, &o, x->data, s->k);
    return o;
}

static void test_product(const tmac_kernels *isa, tmac_shape s, int exact, int round)
{
    int32_t n;
    guarded x;
    random_case(&s, &n, exact, round);
    owned_lut o = random_lut(&tmac_kernels_scalar, &s, n, exact, random_below(N_PATTERNS), &x);
    guarded tiles = random_tiles(&s, random_below(8)), own = reordered_tiles(isa, &s, &tiles);
    const int32_t split = round < 3 ? 0 : random_below(tmac_n_segments(&s) + 1), ldy = s.m + random_below(3);
    guarded want = product(&tmac_kernels_scalar, &s, &tiles, &o.lut, 0, ldy), got = product(isa, &s, &own, &o.lut, split, ldy);
    check_equal(&want, &got, isa->name, n == 1 && split == 0 ? "gemv's y" : "gemm's y");
    lut_free(&o), guarded_free(&x), guarded_free(&tiles), guarded_free(&own), guarded_free(&want), guarded_free(&got);
}

/* ---- the specification itself -------------------------------------------------------------------------------- */

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

/* Bound: half a table unit per lookup (int8 tables), and k + 8 roundings of float32 on the sum of magnitudes. */
static void test_specification(tmac_shape s, int exact, int round)
{
    int32_t n;
    guarded x;
    random_case(&s, &n, exact, round);
    owned_lut o = random_lut(&tmac_kernels_scalar, &s, n, exact, round % 2 ? MIXED : OUTLIER, &x);
    guarded tiles = random_tiles(&s, 0), y = product(&tmac_kernels_scalar, &s, &tiles, &o.lut, 0, s.m);
    for (int32_t t = 0; t < n; t++)
        for (int32_t r = 0; r < s.m; r++) {
            double sum = 0, magnitude = 0, bound = 0;
            for (int32_t c = 0; c < s.k; c++) {
                double scale, zero, a = exact ? ((int8_t *)x.data)[t * s.k + c] : ((float *)x.data)[t * s.k + c];
                int code = weight_code(&s, tiles.data, r, c, &scale, &zero);
                sum += (code - zero) * scale * a;
                magnitude += (fabs(zero) + (1 << s.bits)) * fabs(scale * a);
                if (!exact && c % 4 == 0)
                    bound += 0.5 * (1 << s.bits) * fabs(scale) * o.lut.half_scales[c / o.lut.segment_columns * n + t];
            }
            bound = (bound + magnitude * (s.k + 8) * FLT_EPSILON) * o.lut.token_scales[t] + FLT_MIN;
            if (!(fabs(sum * o.lut.token_scales[t] - ((float *)y.data)[t * s.m + r]) <= bound)) fail("scalar", "dot product");
        }
    lut_free(&o), guarded_free(&x), guarded_free(&tiles), guarded_free(&y);
}

/* Every kind of matrix and table; isa NULL: the specification itself. */
static void test_products(const tmac_kernels *isa, int rounds)
{
    static const int32_t groups[] = {0, 32, 64, 128};
    for (int32_t kind = 0; kind < TMAC_MAX_BITS * 4 * 2 * 2; kind++) {
        const tmac_shape s = {0, 0, 1 + kind % 8, groups[kind / 8 % 4], kind / 32 % 2, 0.0f};
        for (int round = 0; round < rounds; round++)
            if (isa) test_product(isa, s, kind / 64, round);
            else test_specification(s, kind / 64, kind * 7 + round);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1) seed = strtoull(argv[1], NULL, 0) | 1;
    state = seed;
    test_products(NULL, 1);
    for (int i = 0; tmac_isa(i); i++) {
        const tmac_kernels *isa = tmac_isa(i);
        if (!tmac_isa_supported(i)) {
            printf("%s: SKIPPED, this CPU lacks %s\n", isa->name, isa->requires);
            continue;
        }
        test_quantize_row(isa);
        test_lut_build(isa);
        test_products(isa, 11);
        printf("%s: equal to scalar\n", isa->name);
    }
    return 0;
}
