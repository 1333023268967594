/* Ternary matrices, five codes in a byte: literal bytes, products of every instruction set, and the whole library
 * against two planes with exact tables, bit for bit.
 * Usage: test_ternary [seed] */
#include <float.h>

#include "kernel_cases.h"
#include "threadpool.h"

enum { ROWS = TMAC_ROWS_PER_BLOCK };

static tmac_shape ternary(int32_t m, int32_t k)
{
    return (tmac_shape){m, k, 2, 0, 0, 1.0f, TMAC_TERNARY};
}

/* ---- bytes ---------------------------------------------------------------------------------------------------- */

static void test_literal_bytes(void)
{
    const tmac_shape s = ternary(2, 33);
    uint8_t codes[2 * 33], tiles[2 * 384 + 256], back[2 * 33];
    float scales[2] = {0.5f, -2.0f}, read[2], weights[33];
    memset(codes, 1, sizeof codes);
    memset(codes, 2, 5);      /* row 0, columns 0 .. 4: all +1 */
    memset(codes + 33, 0, 5); /* row 1: all -1 */
    codes[5] = 2;             /* +1 + 3 * -1 = -2 */
    codes[6] = 0;
    codes[33 + 32] = 2; /* the last column: the third of group 0 of step 1 */
    CHECK(tmac_packed_size(&s) == sizeof tiles, "packed size %d", (int)tmac_packed_size(&s));
    memset(tiles, 0xff, sizeof tiles);
    CHECK(tmac_pack(&s, 0, 2, codes, scales, NULL, tiles) == TMAC_OK, "pack");
    for (int i = 0; i < 2 * 384; i++) {
        const int want = i == 0 ? 121 : i == 1 ? 0x80 | 121 : i == 64 ? 0x82 : i == 384 + 1 ? 9 : 0;
        CHECK(tiles[i] == want, "byte %d: %d, expected %d", i, tiles[i], want);
    }
    CHECK(!memcmp(tiles + 768, scales, 8), "scales");
    CHECK(tmac_unpack(&s, tiles, back, read, NULL) == TMAC_OK, "unpack");
    CHECK(!memcmp(codes, back, sizeof codes) && !memcmp(scales, read, 8), "codes and scales");
    tiles[64] = 0x80, tiles[128] = 122, tiles[192] = 0xff; /* minus zero, and bytes outside the code */
    CHECK(tmac_unpack(&s, tiles, back, read, NULL) == TMAC_OK, "unpack");
    for (int c = 5; c < 20; c++) CHECK(back[c] == 1, "column %d: %d", c, back[c]);
    CHECK(tmac_dequantize_rows(&s, tiles, (int32_t[]){1}, 1, weights) == TMAC_OK, "dequantize");
    CHECK(weights[0] == 2.0f && weights[5] == 0.0f && weights[31] == 0.0f && weights[32] == -2.0f, "weights");
}

static void test_refusals(void)
{
    tmac_shape bad[] = {ternary(4, 9), ternary(4, 9), ternary(4, 9), ternary(4, 9), ternary(4, 9)};
    uint8_t codes[4 * 9] = {0}, tiles[384 + 256];
    float scales[4] = {0};
    bad[0].bits = 3, bad[1].group_size = 32, bad[2].has_zeros = 1, bad[3].zero = 0.0f, bad[4].encoding = 2;
    for (int i = 0; i < 5; i++) {
        CHECK(tmac_packed_size(&bad[i]) == TMAC_ERR_ARGUMENT, "shape %d", i);
        CHECK(tmac_memory_size(&bad[i]) == TMAC_ERR_ARGUMENT, "shape %d", i);
    }
    CHECK(tmac_memory_size(&(tmac_shape){4, 9, 2, 0, 0, 1.0f, TMAC_TERNARY}) == TMAC_ERR_ISA, "before tmac_init");
    const tmac_shape s = ternary(4, 9);
    CHECK(tmac_pack(&s, 0, 4, codes, scales, NULL, tiles) == TMAC_OK, "codes 0");
    for (int code = 3; code < 256; code++) {
        codes[35] = (uint8_t)code;
        CHECK(tmac_pack(&s, 0, 4, codes, scales, NULL, tiles) == TMAC_ERR_CODE, "code %d", code);
    }
}

/* ---- kernels --------------------------------------------------------------------------------------------------- */

/* One product: activations, a matrix as in the file, and its rows' scales side by side. */
typedef struct {
    tmac_shape shape;
    int32_t n, ldy;
    int32_t first; /* row blocks [0, first) are one slab, the others the next */
    guarded q, tiles, scales;
} ternary_case;

static int32_t steps_of(const tmac_kernels *isa, const tmac_shape *s)
{
    return (s->k - 1) / isa->ternary.step_columns + 1;
}

/* Tables of n tokens in two calls, as threads share them. */
static guarded tables_of(const tmac_kernels *isa, const ternary_case *c, tmac_lut *lut)
{
    const int32_t k = c->shape.k, steps = steps_of(isa, &c->shape);
    guarded tables = guarded_alloc((size_t)(steps * c->n * isa->ternary.table_bytes), 0);
    lut->tables = (int8_t *)tables.data;
    for (int32_t t = 0; t < c->n; t++) {
        const int8_t *q = (const int8_t *)c->q.data + (int64_t)t * k;
        isa->ternary_build(q, k, t, steps / 2, steps, lut);
        isa->ternary_build(q, k, t, 0, steps / 2, lut);
        lut->token_scales[t] = 0.37f + (float)t;
    }
    guarded_check(&tables, isa->name, "memory beside ternary tables");
    return tables;
}

/* y (n, ldy), by gemv where `one`, through this instruction set's own memory order and tables. */
static guarded product_of(const tmac_kernels *isa, const ternary_case *c, int one)
{
    const tmac_shape *s = &c->shape;
    const int32_t blocks = tmac_n_blocks(s);
    const float *scales = (const float *)c->scales.data;
    guarded y = guarded_alloc((size_t)((c->n - 1) * c->ldy + s->m) * sizeof(float), 4);
    guarded token_scales = guarded_alloc((size_t)c->n * sizeof(float), 4);
    guarded scratch = guarded_alloc((size_t)isa->ternary.scratch_bytes, 0);
    tmac_lut lut = {.n = c->n, .exact = 1, .token_scales = (float *)token_scales.data};
    guarded tables = tables_of(isa, c, &lut);
    for (int32_t begin = 0, end = c->first; begin < blocks; begin = end, end = blocks) {
        guarded slab = guarded_alloc((size_t)((end - begin) * steps_of(isa, s) * isa->ternary.step_bytes), 0);
        isa->ternary_reorder(s, c->tiles.data + begin * tmac_block_bytes(s), end - begin, slab.data);
        guarded_check(&slab, isa->name, "memory beside a slab");
        if (one) isa->ternary_gemv(s, slab.data, scales, &lut, begin, end, (float *)y.data);
        else isa->ternary_gemm(s, slab.data, scales, &lut, begin, end, scratch.data, (float *)y.data, c->ldy);
        guarded_free(&slab);
    }
    guarded_check(&scratch, isa->name, "memory beside scratch");
    guarded_free(&scratch), guarded_free(&tables), guarded_free(&token_scales);
    return y;
}

/* Every product against the sum over decoded weights; exact, so that floats are equal. */
static void check_rows(const ternary_case *c, const float *y)
{
    const tmac_shape *s = &c->shape;
    for (int32_t row = 0; row < s->m; row++)
        for (int32_t t = 0; t < c->n; t++) {
            const uint8_t *block = c->tiles.data + row / ROWS * tmac_block_bytes(s) + row % ROWS;
            int32_t sum = 0;
            for (int32_t i = 0; i < s->k; i++) {
                const uint8_t byte = block[i / 5 * ROWS];
                int32_t rest = (byte & 127) > 121 ? 121 : 121 + (byte & 127);
                for (int32_t j = 0; j < i % 5; j++) rest /= 3;
                const int32_t trit = rest % 3 - 1;
                sum += (byte & 128 ? -trit : trit) * (int8_t)c->q.data[(int64_t)t * s->k + i];
            }
            const float want = ((const float *)c->scales.data)[row] * (float)sum * (0.37f + (float)t);
            if (memcmp(&want, &y[(int64_t)t * c->ldy + row], 4)) fail("scalar", "ternary dot product");
        }
}

/* Any byte is a code, in columns beyond k too. */
static ternary_case random_ternary(int32_t m, int32_t k, int32_t n, int pattern)
{
    ternary_case c = {.shape = ternary(m, k), .n = n, .ldy = m + random_below(3)};
    const int32_t blocks = tmac_n_blocks(&c.shape);
    c.first = blocks > TERNARY_SLAB_BLOCKS ? TERNARY_SLAB_BLOCKS : 1 + random_below(blocks);
    c.q = guarded_alloc((size_t)n * (size_t)k, 1);
    c.tiles = guarded_alloc((size_t)tmac_packed_size(&c.shape), 1);
    c.scales = guarded_alloc((size_t)blocks * ROWS * 4, 0);
    fill_bytes((int8_t *)c.q.data, n * k, pattern);
    const int extreme = random_below(4); /* all codes the lowest or the highest */
    for (size_t i = 0; i < c.tiles.bytes; i++)
        c.tiles.data[i] = (uint8_t)(extreme == 0 ? 121 : extreme == 1 ? 249 : (int)random_bits());
    for (int32_t r = 0; r < blocks * ROWS; r++) ((float *)c.scales.data)[r] = random_unit();
    return c;
}

static void check_product(const tmac_kernels *isa, const ternary_case *c, int one)
{
    guarded want = product_of(&tmac_kernels_scalar, c, 0), got = product_of(isa, c, one);
    if (isa == &tmac_kernels_scalar) check_rows(c, (const float *)got.data);
    check_equal(&want, &got, isa->name, one ? "ternary gemv's y" : "ternary gemm's y");
    guarded_free(&want), guarded_free(&got);
}

static void drop(ternary_case *c) { guarded_free(&c->q), guarded_free(&c->tiles), guarded_free(&c->scales); }

static void test_products(const tmac_kernels *isa, int32_t m, int32_t k, int32_t n, int pattern)
{
    ternary_case c = random_ternary(m, k, n, pattern);
    const int one = n == 1 && pattern % 2;
    snprintf(where, sizeof where, "ternary m %d k %d n %d pattern %d first %d gemv %d", m, k, n, pattern, c.first, one);
    check_product(isa, &c, one);
    drop(&c);
}

/* One activation in three has a value, and all weights are +1 or -1: every sum of three columns is this value, so that
 * whatever it is split into adds up to the largest total there is. */
static void test_splits(const tmac_kernels *isa)
{
    for (int value = -128; value < 128; value++) {
        ternary_case c = random_ternary(64, 240, 1, ZERO);
        snprintf(where, sizeof where, "ternary sums of %d", value);
        for (int32_t i = 0; i < c.shape.k; i += 3) c.q.data[i] = (uint8_t)value;
        for (size_t i = 0; i < c.tiles.bytes; i++) c.tiles.data[i] = i % 2 ? 121 : 249;
        check_product(isa, &c, 1);
        drop(&c);
    }
}

static void test_kernels(const tmac_kernels *isa)
{
    static const int32_t tokens[] = {1, 1, 2, 3, 1, 5, 8, 4, 13, 16, 17, 32, 33};
    for (int i = 0; i < 200; i++) {
        const int32_t n = tokens[i % 13];
        test_products(isa, 1 + random_below(n > 8 ? 200 : 700), 1 + random_below(i % 4 ? 640 : 40), n, i % N_PATTERNS);
    }
    for (int n = 1; n <= 40; n += 39) test_products(isa, 44 * ROWS - 3, 160, n, 1);
    test_products(isa, 70, 300, 97, MIXED);
    for (int pattern = LOW; pattern <= HIGH; pattern++)
        for (int i = 0; i < 4; i++) test_products(isa, 70, 2000, i % 2 ? 14 : 1, pattern);
}

/* ---- the library ------------------------------------------------------------------------------------------------- */

/* The same weights in five to a byte and in two planes, through tmac_matmul: equal bits. */
static void test_against_planes(int32_t m, int32_t k, int32_t n)
{
    const tmac_shape s = ternary(m, k), planes = {m, k, 2, 0, 0, 1.0f, TMAC_PLANES};
    guarded codes = guarded_alloc((size_t)m * (size_t)k, 1), scales = guarded_alloc((size_t)m * 4, 4);
    guarded five = guarded_alloc((size_t)tmac_packed_size(&s), 1);
    guarded two = guarded_alloc((size_t)tmac_packed_size(&planes), 0);
    guarded x = guarded_alloc((size_t)n * (size_t)k * 4, 4);
    guarded y[3];
    for (int i = 0; i < 3; i++) y[i] = guarded_alloc((size_t)n * (size_t)m * 4, 4);
    for (size_t i = 0; i < codes.bytes; i++) codes.data[i] = (uint8_t)random_below(3);
    for (int32_t r = 0; r < m; r++) ((float *)scales.data)[r] = random_unit();
    fill_floats((float *)x.data, n * k, MIXED);
    CHECK(!tmac_pack(&s, 0, m, codes.data, scales.data, NULL, five.data), "pack");
    CHECK(!tmac_pack(&planes, 0, m, codes.data, scales.data, NULL, two.data), "pack");
    tmac_matrix *a, *b;
    CHECK(!tmac_matrix_load(&s, five.data, &a) && !tmac_matrix_load(&planes, two.data, &b), "load");
    CHECK(tmac_matrix_bytes(a, NULL) == tmac_memory_size(&s), "bytes");
    CHECK(tmac_matrix_bytes(b, NULL) == tmac_memory_size(&planes), "bytes");
    CHECK(!tmac_matmul(a, x.data, TMAC_F32, k, NULL, n, TMAC_TABLES_EXACT, (float *)y[0].data, m, NULL), "ternary");
    CHECK(!tmac_matmul(a, x.data, TMAC_F32, k, NULL, n, TMAC_TABLES_INT8, (float *)y[1].data, m, NULL), "int8 asked");
    CHECK(!tmac_matmul(b, x.data, TMAC_F32, k, NULL, n, TMAC_TABLES_EXACT, (float *)y[2].data, m, NULL), "planes");
    check_equal(&y[2], &y[0], tmac_isa_selected(), "y of five codes in a byte and of two planes");
    check_equal(&y[2], &y[1], tmac_isa_selected(), "y where int8 tables were asked for");
    CHECK(!tmac_matmul(a, x.data, TMAC_F32, k, NULL, n, TMAC_TABLES_FAST, (float *)y[1].data, m, NULL), "fast asked");
    check_equal(&y[2], &y[1], tmac_isa_selected(), "y where fast aggregation was asked for");
    CHECK(tmac_matmul(a, x.data, TMAC_F32, k, NULL, n, 3, (float *)y[0].data, m, NULL) == TMAC_ERR_ARGUMENT, "tables 3");
    ((float *)x.data)[random_below(n * k)] = NAN;
    CHECK(tmac_matmul(a, x.data, TMAC_F32, k, NULL, n, 1, (float *)y[0].data, m, NULL) == TMAC_ERR_NONFINITE, "NaN");
    tmac_matrix_free(a), tmac_matrix_free(b);
    guarded_free(&codes), guarded_free(&scales), guarded_free(&five), guarded_free(&two), guarded_free(&x);
    for (int i = 0; i < 3; i++) guarded_free(&y[i]);
}

int main(int argc, char **argv)
{
    seed_from(argc, argv);
    test_literal_bytes();
    test_refusals();
    for (int i = 0; tmac_isa(i); i++) {
        const tmac_kernels *isa = tmac_isa(i);
        if (!tmac_isa_supported(i)) {
            printf("%s: SKIPPED, this CPU lacks %s\n", isa->name, isa->requires);
            continue;
        }
        test_kernels(isa);
        test_splits(isa);
        for (int threads = 1; threads <= 3; threads++) {
            static const int32_t shapes[][3] = {{1, 1, 1}, {67, 131, 3}, {640, 300, 1}, {200, 700, 65}, {2700, 40, 1}};
            CHECK(!tmac_init(isa->name, threads), "init");
            for (int j = 0; j < 5; j++) {
                const int32_t *s = shapes[j];
                snprintf(where, sizeof where, "m %d k %d n %d threads %d", s[0], s[1], s[2], threads);
                test_against_planes(s[0], s[1], s[2]);
            }
        }
        printf("%s: equal\n", isa->name);
    }
    return tmac_init(NULL, 1);
}
