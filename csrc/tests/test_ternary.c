/* Ternary matrices, five codes in a byte: literal bytes, tables and products of every instruction set, and the whole
 * library against two planes with exact tables, bit for bit.
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
    for (int i = 0; i < 5; i++) CHECK(tmac_packed_size(&bad[i]) == TMAC_ERR_ARGUMENT, "shape %d", i);
    const tmac_shape s = ternary(4, 9);
    CHECK(tmac_pack(&s, 0, 4, codes, scales, NULL, tiles) == TMAC_OK, "codes 0");
    for (int code = 3; code < 256; code++) {
        codes[35] = (uint8_t)code;
        CHECK(tmac_pack(&s, 0, 4, codes, scales, NULL, tiles) == TMAC_ERR_CODE, "code %d", code);
    }
}

/* ---- kernels --------------------------------------------------------------------------------------------------- */

typedef struct {
    guarded tables, token_scales;
    tmac_lut lut;
} ternary_lut;

/* Tables of n tokens in two calls, as threads share them. */
static ternary_lut tables_of(const tmac_kernels *isa, const tmac_shape *s, int32_t n, const int8_t *q)
{
    const int32_t steps = tmac_ternary_steps(s);
    ternary_lut o = {guarded_alloc((size_t)steps * (size_t)n * TERNARY_STEP_TABLES, 0),
                     guarded_alloc((size_t)n * sizeof(float), 4), {0}};
    o.lut.n = n, o.lut.exact = 1;
    o.lut.tables = (int8_t *)o.tables.data, o.lut.token_scales = (float *)o.token_scales.data;
    for (int32_t t = 0; t < n; t++) {
        isa->ternary_build(q + (int64_t)t * s->k, s->k, t, steps / 2, steps, &o.lut);
        isa->ternary_build(q + (int64_t)t * s->k, s->k, t, 0, steps / 2, &o.lut);
        o.lut.token_scales[t] = 0.37f + (float)t;
    }
    return o;
}

static void lut_drop(ternary_lut *o) { guarded_free(&o->tables), guarded_free(&o->token_scales); }

/* Row blocks [0, first) are one slab, the others the next. Any byte is a code. */
static guarded product_of(const tmac_kernels *isa, const tmac_shape *s, const uint8_t *codes, const float *scales,
                          const tmac_lut *lut, int32_t first, int one, int32_t ldy)
{
    const int32_t steps = tmac_ternary_steps(s), blocks = tmac_n_blocks(s);
    guarded y = guarded_alloc((size_t)((lut->n - 1) * ldy + s->m) * sizeof(float), 4);
    float *out = (float *)y.data;
    for (int32_t begin = 0, end = first; begin < blocks; begin = end, end = blocks) {
        const uint8_t *slab = codes + (int64_t)begin * steps * TERNARY_STEP_BYTES;
        if (one) isa->ternary_gemv(s, slab, scales, lut, begin, end, out);
        else isa->ternary_gemm(s, slab, scales, lut, begin, end, out, ldy);
    }
    return y;
}

/* Every product against the sum over decoded weights; exact, so that floats are equal. */
static void check_rows(const tmac_shape *s, const uint8_t *codes, const float *scales, const tmac_lut *lut,
                       const int8_t *q, int32_t first, const float *y, int32_t ldy)
{
    const int32_t steps = tmac_ternary_steps(s);
    for (int32_t row = 0; row < s->m; row++)
        for (int32_t t = 0; t < lut->n; t++) {
            const int32_t block = row / ROWS, begin = block < first ? 0 : first, end = begin ? tmac_n_blocks(s) : first;
            int32_t sum = 0;
            for (int32_t c = 0; c < s->k; c++) {
                const int64_t at = tmac_ternary_offset(end - begin, steps, block - begin, c / 30, c % 30 / 5);
                const uint8_t byte = codes[(int64_t)begin * steps * 384 + at + row % ROWS];
                int32_t rest = (byte & 127) > 121 ? 121 : 121 + (byte & 127);
                for (int32_t j = 0; j < c % 5; j++) rest /= 3;
                const int32_t trit = rest % 3 - 1;
                sum += (byte & 128 ? -trit : trit) * q[(int64_t)t * s->k + c];
            }
            const float want = scales[row] * (float)sum * lut->token_scales[t];
            if (memcmp(&want, &y[(int64_t)t * ldy + row], 4)) fail("scalar", "ternary dot product");
        }
}

static void test_products(const tmac_kernels *isa, int32_t m, int32_t k, int32_t n, int pattern)
{
    const tmac_shape s = ternary(m, k);
    const int32_t steps = tmac_ternary_steps(&s), blocks = tmac_n_blocks(&s), ldy = m + random_below(3);
    const int32_t first = blocks > TERNARY_SLAB_BLOCKS ? TERNARY_SLAB_BLOCKS : 1 + random_below(blocks);
    const int one = n == 1 && pattern % 2;
    snprintf(where, sizeof where, "ternary m %d k %d n %d pattern %d first %d gemv %d", m, k, n, pattern, first, one);
    guarded q = guarded_alloc((size_t)n * (size_t)k, 1), codes = guarded_alloc((size_t)blocks * (size_t)steps * 384, 0);
    guarded scales = guarded_alloc((size_t)blocks * ROWS * 4, 0);
    fill_bytes((int8_t *)q.data, n * k, pattern);
    const int extreme = random_below(4); /* all codes the lowest or the highest */
    for (size_t i = 0; i < codes.bytes; i++)
        codes.data[i] = (uint8_t)(extreme == 0 ? 121 : extreme == 1 ? 249 : (int)random_bits());
    for (int32_t r = 0; r < blocks * ROWS; r++) ((float *)scales.data)[r] = random_unit();
    ternary_lut want_lut = tables_of(&tmac_kernels_scalar, &s, n, (int8_t *)q.data);
    ternary_lut lut = tables_of(isa, &s, n, (int8_t *)q.data);
    check_equal(&want_lut.tables, &lut.tables, isa->name, "ternary tables");
    guarded want = product_of(&tmac_kernels_scalar, &s, codes.data, (float *)scales.data, &lut.lut, first, 0, ldy);
    guarded got = product_of(isa, &s, codes.data, (float *)scales.data, &lut.lut, first, one, ldy);
    if (isa == &tmac_kernels_scalar)
        check_rows(&s, codes.data, (float *)scales.data, &lut.lut, (int8_t *)q.data, first, (float *)got.data, ldy);
    check_equal(&want, &got, isa->name, one ? "ternary gemv's y" : "ternary gemm's y");
    guarded_free(&q), guarded_free(&codes), guarded_free(&scales), guarded_free(&want), guarded_free(&got);
    lut_drop(&want_lut), lut_drop(&lut);
}

static void test_kernels(const tmac_kernels *isa)
{
    static const int32_t tokens[] = {1, 1, 2, 3, 1, 5, 8};
    for (int i = 0; i < 200; i++)
        test_products(isa, 1 + random_below(700), 1 + random_below(i % 4 ? 640 : 40), tokens[i % 7], i % N_PATTERNS);
    test_products(isa, 44 * ROWS - 3, 160, 1, 1);
    for (int pattern = LOW; pattern <= HIGH; pattern++) test_products(isa, 70, 2000, 1, pattern);
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
    CHECK(!tmac_matmul(a, x.data, TMAC_F32, k, NULL, n, TMAC_TABLES_EXACT, (float *)y[0].data, m), "ternary");
    CHECK(!tmac_matmul(a, x.data, TMAC_F32, k, NULL, n, TMAC_TABLES_INT8, (float *)y[1].data, m), "int8 asked");
    CHECK(!tmac_matmul(b, x.data, TMAC_F32, k, NULL, n, TMAC_TABLES_EXACT, (float *)y[2].data, m), "planes");
    check_equal(&y[2], &y[0], tmac_isa_selected(), "y of five codes in a byte and of two planes");
    check_equal(&y[2], &y[1], tmac_isa_selected(), "y where int8 tables were asked for");
    CHECK(tmac_matmul(a, x.data, TMAC_F32, k, NULL, n, 2, (float *)y[0].data, m) == TMAC_ERR_ARGUMENT, "tables 2");
    ((float *)x.data)[random_below(n * k)] = NAN;
    CHECK(tmac_matmul(a, x.data, TMAC_F32, k, NULL, n, 1, (float *)y[0].data, m) == TMAC_ERR_NONFINITE, "NaN");
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
        if (isa->ternary_gemv) test_kernels(isa);
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
