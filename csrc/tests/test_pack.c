/* Tiles against the sentence of layout.h, bit by bit; unpack inverts pack; rows can be packed block by block. */
#include <math.h>

#include "check.h"
#include "half.h"
#include "layout.h"
#include "threadpool.h"

static const int32_t rows[] = {1, 15, 16, 63, 64, 65, 130}, columns[] = {1, 3, 4, 31, 32, 33, 127, 128, 129, 300};
static const int32_t groups[] = {0, 32, 64, 128};
#define COUNT(a) ((int32_t)(sizeof(a) / sizeof *(a)))
#define CASE "m %d k %d bits %d group_size %d has_zeros %d", s->m, s->k, s->bits, s->group_size, s->has_zeros

typedef struct {
    uint8_t *codes;
    char *scales, *zeros; /* float16 or float32 */
    size_t n_codes, value_bytes;
} parts;

static parts parts_alloc(const tmac_shape *s)
{
    const size_t n_groups = s->group_size ? (size_t)((s->k + s->group_size - 1) / s->group_size) : 1;
    parts p = {.n_codes = (size_t)s->m * (size_t)s->k};
    p.value_bytes = (size_t)s->m * n_groups * (s->group_size ? 2 : 4);
    p.codes = canary_alloc(p.n_codes, 0);
    p.scales = canary_alloc(p.value_bytes, 0);
    p.zeros = canary_alloc(p.value_bytes, 0);
    return p;
}

static void parts_free(parts *p)
{
    canary_free(p->codes);
    canary_free(p->scales);
    canary_free(p->zeros);
}

static int parts_intact(const parts *p)
{
    return canary_intact(p->codes, p->n_codes) && canary_intact(p->scales, p->value_bytes) &&
           canary_intact(p->zeros, p->value_bytes);
}

static void parts_fill(const tmac_shape *s, parts *p)
{
    for (size_t i = 0; i < p->n_codes; i++) p->codes[i] = (uint8_t)random_below(1 << s->bits);
    for (size_t i = 0; i < p->value_bytes; i++) {
        p->scales[i] = (char)random_bits(); /* any bits, NaN included: they are only carried */
        p->zeros[i] = (char)random_bits();
    }
}

/* Bit p of code (r, c), straight from the drawing in layout.h. */
static int bit_of(const tmac_shape *s, const uint8_t *tiles, int32_t r, int32_t c, int32_t p)
{
    const int32_t segment_columns = s->group_size ? s->group_size : 128;
    const int64_t stream = (int64_t)segment_columns / 32 * s->bits * 256;
    const int64_t tail = s->group_size ? 128 * (1 + s->has_zeros) : 0;
    const int64_t segments = (s->k + 127) / 128 * 128 / segment_columns;
    const int64_t block = segments * (stream + tail) + (s->group_size ? 0 : 256 * (1 + s->has_zeros));
    const uint8_t *step = tiles + r / 64 * block + c / segment_columns * (stream + tail) +
                          c % segment_columns / 32 * s->bits * 256;
    const int32_t quad = c % 32 / 16, group = c % 16 / 4;
    const int alone = s->bits % 2 && p == s->bits - 1;
    const int32_t vector = alone ? s->bits - 1 : p / 2 * 2 + quad, high = alone ? quad : p % 2;
    return step[vector * 256 + r % 64 / 16 * 64 + r % 16 * 4 + group] >> (4 * high + c % 4) & 1;
}

static void check_shape(const tmac_shape *s)
{
    const size_t size = (size_t)tmac_packed_size(s);
    parts in = parts_alloc(s), out = parts_alloc(s);
    uint8_t *tiles = canary_alloc(size, 0xff), *blocks = canary_alloc(size, 0xff);
    parts_fill(s, &in);
    CHECK(tmac_pack(s, 0, s->m, in.codes, in.scales, in.zeros, tiles) == TMAC_OK, CASE);
    CHECK(canary_intact(tiles, size), CASE);
    for (int32_t r = 0; r < s->m; r++)
        for (int32_t c = 0; c < s->k; c++)
            for (int32_t p = 0; p < s->bits; p++)
                CHECK(bit_of(s, tiles, r, c, p) == (in.codes[(int64_t)r * s->k + c] >> p & 1), CASE);
    CHECK(tmac_unpack(s, tiles, out.codes, out.scales, out.zeros) == TMAC_OK, CASE);
    CHECK(parts_intact(&out) && !memcmp(in.codes, out.codes, in.n_codes), CASE);
    CHECK(!memcmp(in.scales, out.scales, in.value_bytes), CASE);
    CHECK(!s->has_zeros || !memcmp(in.zeros, out.zeros, in.value_bytes), CASE);
    for (int32_t r = 0; r < s->m; r += 64) { /* one block at a time gives the same bytes */
        const int32_t end = r + 64 < s->m ? r + 64 : s->m;
        const size_t at = in.value_bytes / (size_t)s->m * (size_t)r;
        CHECK(tmac_pack(s, r, end, in.codes + (int64_t)r * s->k, in.scales + at, in.zeros + at,
                        blocks + r / 64 * tmac_block_bytes(s)) == TMAC_OK, CASE);
    }
    CHECK(canary_intact(blocks, size) && !memcmp(tiles, blocks, size), CASE);
    if (s->bits < 8) {
        in.codes[random_below((int32_t)in.n_codes)] = (uint8_t)(1 << s->bits);
        CHECK(tmac_pack(s, 0, s->m, in.codes, in.scales, in.zeros, tiles) == TMAC_ERR_CODE, CASE);
    }
    parts_free(&in);
    parts_free(&out);
    canary_free(tiles);
    canary_free(blocks);
}

static void test_dequantize_rows(void)
{
    enum { M = 70, K = 200, N_ROWS = 5 };
    const tmac_shape shapes[] = {{M, K, 3, 64, 1, 0}, {M, K, 3, 64, 0, 2.5f}, {M, K, 5, 0, 1, 0}, {M, K, 1, 0, 0, 1}};
    const int32_t wanted[N_ROWS] = {69, 0, 64, 64, 7};
    for (int32_t i = 0; i < COUNT(shapes); i++) {
        const tmac_shape *s = &shapes[i];
        const int32_t n_groups = s->group_size ? (K + s->group_size - 1) / s->group_size : 1;
        parts p = parts_alloc(s);
        parts_fill(s, &p);
        for (int32_t j = 0; j < M * n_groups; j++)
            if (s->group_size) {
                ((uint16_t *)p.scales)[j] = tmac_half_of_float(random_normal());
                ((uint16_t *)p.zeros)[j] = tmac_half_of_float(random_normal());
            } else {
                ((float *)p.scales)[j] = random_normal();
                ((float *)p.zeros)[j] = random_normal();
            }
        uint8_t *tiles = canary_alloc((size_t)tmac_packed_size(s), 0);
        float *out = canary_alloc(N_ROWS * K * sizeof(float), 0xff);
        CHECK(tmac_pack(s, 0, M, p.codes, p.scales, p.zeros, tiles) == TMAC_OK, CASE);
        CHECK(tmac_dequantize_rows(s, tiles, wanted, N_ROWS, out) == TMAC_OK, CASE);
        CHECK(canary_intact(out, N_ROWS * K * sizeof(float)), CASE);
        for (int32_t j = 0; j < N_ROWS * K; j++) {
            const int32_t r = wanted[j / K], c = j % K, g = r * n_groups + (s->group_size ? c / s->group_size : 0);
            const int half = s->group_size > 0;
            const float scale = half ? tmac_float_of_half(((uint16_t *)p.scales)[g]) : ((float *)p.scales)[g];
            const float zero = !s->has_zeros ? s->zero
                               : half        ? tmac_float_of_half(((uint16_t *)p.zeros)[g])
                                             : ((float *)p.zeros)[g];
            CHECK(out[j] == ((float)p.codes[r * K + c] - zero) * scale, CASE);
        }
        const int32_t outside[2] = {0, M}, negative = -1;
        CHECK(tmac_dequantize_rows(s, tiles, outside, 2, out) == TMAC_ERR_ARGUMENT, CASE);
        CHECK(tmac_dequantize_rows(s, tiles, &negative, 1, out) == TMAC_ERR_ARGUMENT, CASE);
        canary_free(out);
        canary_free(tiles);
        parts_free(&p);
    }
}

static void test_impossible_shapes(void)
{
    const tmac_shape bad[] = {{0, 4, 2, 32, 0, 0},  {-1, 4, 2, 32, 0, 0},       {4, 0, 2, 32, 0, 0},
                              {4, 4, 0, 32, 0, 0},  {4, 4, 9, 32, 0, 0},        {4, 4, 2, 16, 0, 0},
                              {4, 4, 2, -32, 0, 0}, {4, TMAC_MAX_COLUMNS + 1, 2, 32, 0, 0}, {4, 4, 2, 32, 2, 0},
                              {4, 4, 2, 32, 0, NAN}};
    uint8_t bytes[64];
    for (int32_t i = 0; i < COUNT(bad); i++) {
        CHECK(tmac_packed_size(&bad[i]) == TMAC_ERR_ARGUMENT, "shape %d", i);
        CHECK(tmac_pack(&bad[i], 0, 1, bytes, bytes, bytes, bytes) == TMAC_ERR_ARGUMENT, "shape %d", i);
        CHECK(tmac_unpack(&bad[i], bytes, bytes, bytes, bytes) == TMAC_ERR_ARGUMENT, "shape %d", i);
    }
    const tmac_shape s = {130, 4, 2, 32, 1, 0};
    CHECK(tmac_pack(&s, 1, 65, bytes, bytes, bytes, bytes) == TMAC_ERR_ARGUMENT, "row_begin inside a block");
    CHECK(tmac_pack(&s, 0, 63, bytes, bytes, bytes, bytes) == TMAC_ERR_ARGUMENT, "row_end inside a block");
    CHECK(tmac_pack(&s, 0, 131, bytes, bytes, bytes, bytes) == TMAC_ERR_ARGUMENT, "row_end past m");
    CHECK(tmac_pack(&s, 0, 64, bytes, bytes, NULL, bytes) == TMAC_ERR_ARGUMENT, "zeros missing");
    const tmac_shape huge = {INT32_MAX, TMAC_MAX_COLUMNS, 8, 32, 1, 0};
    CHECK(tmac_packed_size(&huge) > (int64_t)INT32_MAX * TMAC_MAX_COLUMNS, "the largest shape overflows");
}

static void test_float16(void)
{
    for (uint32_t h = 0; h < 0x10000; h++) {
        const float f = tmac_float_of_half((uint16_t)h);
        const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
        const double magnitude = exponent ? ldexp(1024 + mantissa, (int)exponent - 25) : ldexp(mantissa, -24);
        if (exponent == 31) CHECK(mantissa ? isnan(f) : isinf(f), "half %04x", h);
        else CHECK((double)f == (h & 0x8000 ? -magnitude : magnitude), "half %04x", h);
        if (!isnan(f)) CHECK(tmac_half_of_float(f) == h, "half %04x", h);
        if (exponent == 31 || h & 0x8000) continue;
        const float next = tmac_float_of_half((uint16_t)(h + 1)), middle = h == 0x7bff ? 65520 : (f + next) / 2;
        CHECK(tmac_half_of_float(middle) == h + (h & 1), "a tie goes to even: half %04x", h);
        CHECK(tmac_half_of_float(nextafterf(middle, 0)) == h, "half %04x", h);
        CHECK(tmac_half_of_float(nextafterf(middle, INFINITY)) == h + 1, "half %04x", h);
    }
    CHECK(isnan(tmac_float_of_half(tmac_half_of_float(NAN))), "NaN stays NaN");
}

int main(void)
{
    tmac_pool_start(2);
    for (int32_t bits = 1; bits <= 8; bits++)
        for (int32_t g = 0; g < COUNT(groups); g++)
            for (int32_t m = 0; m < COUNT(rows); m++)
                for (int32_t k = 0; k < COUNT(columns); k++) {
                    if (bits > 4 && (m + k + g) % 3) continue; /* a third of the wide ones */
                    const tmac_shape shape = {rows[m], columns[k], bits, groups[g], (m + k) & 1, 0.5f};
                    check_shape(&shape);
                }
    test_dequantize_rows();
    test_impossible_shapes();
    test_float16();
    tmac_pool_start(1);
    return 0;
}
