/* Hostile cases for the kernel tests: activations, tables, tiles and products between canaries. */
#ifndef TMAC_TESTS_KERNEL_CASES_H
#define TMAC_TESTS_KERNEL_CASES_H
#include <inttypes.h>
#include <math.h>

#include "check.h"
#include "dispatch.h"

static uint64_t seed = 0x9e3779b97f4a7c15u;
static char where[256]; /* the parameters of the running case */

/* The first argument, if any, replaces the seed. */
static inline void seed_from(int argc, char **argv)
{
    if (argc > 1) seed = strtoull(argv[1], NULL, 0) | 1;
    random_state = seed;
}
static inline float random_unit(void) { return (float)random_bits() / 2147483648.0f - 1.0f; }

static inline void fail(const char *isa, const char *what)
{
    fprintf(stderr, "FAILED %s: %s differs\n  seed %" PRIu64 ", %s\n", isa, what, seed, where);
    exit(1);
}

/* A buffer between canaries; data is 64-byte aligned plus `shift`. */
typedef struct {
    uint8_t *base, *data;
    size_t bytes, shift;
} guarded;

static inline guarded guarded_alloc(size_t bytes, size_t shift)
{
    size_t whole = (CANARY_BYTES + shift + bytes + CANARY_BYTES + 63) / 64 * 64;
    guarded g = {aligned_alloc(64, whole), NULL, bytes, shift};
    if (!g.base) abort();
    memset(g.base, CANARY, whole);
    g.data = g.base + CANARY_BYTES + shift;
    return g;
}
static inline void guarded_check(const guarded *g, const char *isa, const char *what)
{
    for (size_t i = 0; i < CANARY_BYTES + g->shift; i++)
        if (g->base[i] != CANARY) fail(isa, what);
    for (size_t i = 0; i < CANARY_BYTES; i++)
        if (g->data[g->bytes + i] != CANARY) fail(isa, what);
}
static inline void guarded_free(guarded *g) { free(g->base); }
static inline void check_equal(const guarded *a, const guarded *b, const char *isa, const char *what)
{
    if (memcmp(a->data, b->data, a->bytes)) fail(isa, what);
    guarded_check(b, isa, what);
}

/* ---- activations ------------------------------------------------------------------------------------------ */

enum { MIXED, OUTLIER, ZERO, LOW, HIGH, DENORMAL, HUGE_SPREAD, N_PATTERNS };

static inline void fill_floats(float *x, int32_t k, int pattern)
{
    for (int32_t c = 0; c < k; c++) {
        float r = random_unit();
        x[c] = pattern == ZERO ? (c % 2 ? -0.0f : 0.0f)
               : pattern == LOW ? -1.0f
               : pattern == HIGH ? 1.0f
               : pattern == DENORMAL ? r * 1e-40f
               : pattern == HUGE_SPREAD ? ldexpf(r, random_below(200) - 100)
                                        : r;
    }
    if (pattern == OUTLIER) x[random_below(k)] = 1e30f;
}
static inline void fill_bytes(int8_t *q, int32_t k, int pattern)
{
    for (int32_t c = 0; c < k; c++)
        q[c] = pattern == LOW ? -128 : pattern == HIGH ? 127 : pattern == ZERO || pattern == OUTLIER ? 0 : (int8_t)random_below(256);
    if (pattern == OUTLIER) q[random_below(k)] = -128;
}

/* ---- tables ------------------------------------------------------------------------------------------------ */

typedef struct {
    guarded tables, half_scales, sums, totals, token_scales;
    tmac_lut lut;
} owned_lut;

static inline owned_lut lut_alloc(int32_t k, int32_t n, int32_t segment_columns, int tables)
{
    const int exact = tables == TMAC_TABLES_EXACT;
    const int32_t padded = (k + 127) / 128 * 128, n_segments = padded / segment_columns;
    const size_t floats = (size_t)n * sizeof(float);
    owned_lut o = {guarded_alloc((size_t)padded / QUAD_COLUMNS * (size_t)n * (size_t)(1 + exact) * TABLE_BYTES, 0),
                   guarded_alloc((size_t)n_segments * floats, 4), guarded_alloc((size_t)n_segments * floats, 4),
                   guarded_alloc(floats, 4), guarded_alloc(floats, 4), {0}};
    o.lut = (tmac_lut){n, segment_columns, exact, (int8_t *)o.tables.data, (float *)o.half_scales.data,
                       (float *)o.sums.data, (float *)o.totals.data, (float *)o.token_scales.data,
                       tables == TMAC_TABLES_FAST};
    return o;
}
static inline void lut_free(owned_lut *o)
{
    guarded_free(&o->tables), guarded_free(&o->half_scales), guarded_free(&o->sums);
    guarded_free(&o->totals), guarded_free(&o->token_scales);
}

/* Tables of n tokens; x: float or int8 (n, k). Segments in two calls, as threads share them. */
static inline void lut_fill(const tmac_kernels *isa, owned_lut *o, const void *x, int32_t k)
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

/* ---- products ------------------------------------------------------------------------------------------------ */

/* Random tiles with finite scales and zero points; fill 1, 2: all codes lowest, highest. */
static inline guarded random_tiles(const tmac_shape *s, int fill)
{
    const int64_t segment_bytes = tmac_segment_bytes(s), weight_bytes = tmac_steps_per_segment(s) * s->bits * VECTOR_BYTES;
    guarded g = guarded_alloc((size_t)(tmac_n_blocks(s) * tmac_block_bytes(s)), 0);
    uint8_t *at = g.data;
    for (int32_t b = 0; b < tmac_n_blocks(s); b++) {
        for (int32_t i = 0; i < tmac_n_segments(s); i++, at += segment_bytes) {
            for (int64_t j = 0; j < weight_bytes; j++) at[j] = fill == 1 ? 0 : fill == 2 ? 0xff : (uint8_t)random_bits();
            for (int64_t j = weight_bytes; j < segment_bytes; j += 2) { /* float16 of every exponent but the last */
                uint16_t half = (uint16_t)(random_bits() & 0xbbff);
                memcpy(at + j, &half, 2);
            }
        }
        for (int j = 0; !s->group_size && j < 64 * (1 + s->has_zeros); j++, at += 4) {
            float value = random_unit();
            memcpy(at, &value, 4);
        }
    }
    return g;
}

/* y (n, ldy) by gemv where n is 1 and split is 0, otherwise by gemm over the panels [0, split), [split, n_segments);
 * row blocks in two calls. */
static inline guarded product(const tmac_kernels *isa, const tmac_shape *s, const guarded *tiles, const tmac_lut *lut,
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

static inline void random_case(tmac_shape *s, int32_t *n, int tables, int round)
{
    static const int32_t tokens[] = {1, 1, 1, 1, 2, 3, 7, 8, 9, 64, 65};
    *n = tokens[round % 11];
    s->m = 1 + random_below(*n > 9 ? 70 : 200);
    s->k = 1 + random_below(*n > 9 ? 140 : 400);
    s->zero = round % 3 ? (float)(1 << (s->bits - 1)) : 0.5f;
    snprintf(where, sizeof where, "m %d k %d bits %d group_size %d has_zeros %d zero %g tables %d n %d round %d", s->m, s->k,
             s->bits, s->group_size, s->has_zeros, (double)s->zero, tables, *n, round);
}

/* Activations in x, their tables by `isa`. tables: enum tmac_tables. */
static inline owned_lut random_lut(const tmac_kernels *isa, const tmac_shape *s, int32_t n, int tables, int pattern,
                                   guarded *x)
{
    const int exact = tables == TMAC_TABLES_EXACT;
    *x = guarded_alloc((size_t)(n * s->k) * (exact ? 1 : sizeof(float)), exact ? 1 : 4);
    if (exact) fill_bytes((int8_t *)x->data, n * s->k, pattern);
    else fill_floats((float *)x->data, n * s->k, pattern);
    owned_lut o = lut_alloc(s->k, n, tmac_segment_columns(s), tables);
    lut_fill(isa, &o, x->data, s->k);
    return o;
}

/* Every kind of matrix and table that `isa` knows. */
static inline void for_every_kind(void (*test)(const tmac_kernels *isa, tmac_shape s, int tables, int round),
                                  const tmac_kernels *isa, int rounds)
{
    static const int32_t groups[] = {0, 32, 64, 128};
    const int32_t n_tables = isa->fast_aggregation ? 3 : 2;
    for (int32_t kind = 0; kind < TMAC_MAX_BITS * 4 * 2 * n_tables; kind++)
        for (int round = 0; round < rounds; round++) {
            const tmac_shape s = {0, 0, 1 + kind % 8, groups[kind / 8 % 4], kind / 32 % 2, 0.0f};
            test(isa, s, kind / 64, rounds > 1 ? round : kind * 7);
        }
}
#endif
