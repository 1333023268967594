/* Every operation of every compiled instruction set against the scalar one, bit for bit, on hostile input.
 * Usage: test_kernels [seed] */
#include "kernel_cases.h"

static void test_quantize_row(const tmac_kernels *isa)
{
    for (int32_t k = 1; k < 150; k += k < 35 ? 1 : 29)
        for (int pattern = 0; pattern < N_PATTERNS; pattern++) {
            snprintf(where, sizeof where, "quantize_row k %d pattern %d", k, pattern);
            guarded x = guarded_alloc((size_t)k * sizeof(float), 4);
            guarded q = guarded_alloc((size_t)k, 3), r = guarded_alloc((size_t)k, 3);
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
                for (int tables = 0; tables < 2 + isa->fast_aggregation; tables++) {
                    const int32_t k = columns[i], n = 1 + pattern % 3, exact = tables == TMAC_TABLES_EXACT;
                    snprintf(where, sizeof where, "lut_build k %d n %d segment %d tables %d pattern %d", k, n, segment,
                             tables, pattern);
                    guarded x = guarded_alloc((size_t)(k * n) * (exact ? 1 : sizeof(float)), exact ? 1 : 4);
                    if (exact) fill_bytes((int8_t *)x.data, k * n, pattern);
                    else fill_floats((float *)x.data, k * n, pattern);
                    owned_lut want = lut_alloc(k, n, segment, tables), got = lut_alloc(k, n, segment, tables);
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

/* One matrix, n tokens: the same bits as scalar. split: the segment at which a second panel begins. */
static void compare_product(const tmac_kernels *isa, const tmac_shape *shape, int32_t n, int tables, int pattern, int fill,
                            int32_t split)
{
    const tmac_shape s = *shape;
    const int32_t ldy = s.m + random_below(3);
    guarded x;
    owned_lut o = random_lut(&tmac_kernels_scalar, &s, n, tables, pattern, &x);
    guarded tiles = random_tiles(&s, fill), own = reordered_tiles(isa, &s, &tiles);
    guarded want = product(&tmac_kernels_scalar, &s, &tiles, &o.lut, 0, ldy);
    guarded got = product(isa, &s, &own, &o.lut, split, ldy);
    check_equal(&want, &got, isa->name, n == 1 && split == 0 ? "gemv's y" : "gemm's y");
    lut_free(&o), guarded_free(&x), guarded_free(&tiles), guarded_free(&own), guarded_free(&want), guarded_free(&got);
}

static void test_product(const tmac_kernels *isa, tmac_shape s, int tables, int round)
{
    int32_t n;
    random_case(&s, &n, tables, round);
    compare_product(isa, &s, n, tables, random_below(N_PATTERNS), random_below(8),
                    round < 3 ? 0 : random_below(tmac_n_segments(&s) + 1));
}

/* The ends of every accumulator's range: activations all lowest or highest, codes all lowest or highest. */
static void test_extremes(const tmac_kernels *isa, tmac_shape s, int tables, int round)
{
    s.m = 64, s.k = 128, s.zero = 0;
    for (int i = 0; i < 8; i++) {
        const int n = i / 4 ? 9 : 1, pattern = i / 2 % 2 ? HIGH : LOW, fill = 1 + i % 2;
        snprintf(where, sizeof where, "extremes: bits %d group_size %d tables %d n %d pattern %d fill %d round %d", s.bits,
                 s.group_size, tables, n, pattern, fill, round);
        compare_product(isa, &s, n, tables, pattern, fill, 0);
    }
}

int main(int argc, char **argv)
{
    seed_from(argc, argv);
    for (int i = 0; tmac_isa(i); i++) {
        const tmac_kernels *isa = tmac_isa(i);
        if (!tmac_isa_supported(i)) {
            printf("%s: SKIPPED, this CPU lacks %s\n", isa->name, isa->requires);
            continue;
        }
        test_quantize_row(isa);
        test_lut_build(isa);
        for_every_kind(test_product, isa, 11);
        for_every_kind(test_extremes, isa, 1);
        printf("%s: equal to scalar\n", isa->name);
    }
    return 0;
}
