/* The quantiser: what it reports is what it stores; never worse than min-max; odd groups; refusals. */
#include <math.h>

#include "check.h"
#include "half.h"
#include "layout.h"
#include "threadpool.h"

enum { M = 3, K_MAX = 300, GROUPS_MAX = 10 };

typedef struct {
    tmac_shape shape;
    float w[M * K_MAX];
    uint8_t codes[M * K_MAX];
    uint16_t scales[M * GROUPS_MAX], zeros[M * GROUPS_MAX];
    double error[3];
    int status;
} quantised;

#define CASE "k %d bits %d group_size %d has_zeros %d", q->shape.k, q->shape.bits, q->shape.group_size, q->shape.has_zeros

static void run(quantised *q)
{
    q->error[0] = q->error[1] = q->error[2] = 0;
    q->status = tmac_quantize(&q->shape, M, q->w, TMAC_F32, q->codes, q->scales, q->zeros, q->error);
}

static double weight(const quantised *q, int32_t r, int32_t c)
{
    const int32_t n_groups = (q->shape.k + q->shape.group_size - 1) / q->shape.group_size;
    const int32_t g = r * n_groups + c / q->shape.group_size;
    const double zero = q->shape.has_zeros ? (double)tmac_float_of_half(q->zeros[g]) : (double)q->shape.zero;
    return (q->codes[r * q->shape.k + c] - zero) * (double)tmac_float_of_half(q->scales[g]);
}

static double stored_error(const quantised *q)
{
    double sum = 0;
    for (int32_t r = 0; r < M; r++)
        for (int32_t c = 0; c < q->shape.k; c++) {
            const double d = (double)q->w[r * q->shape.k + c] - weight(q, r, c);
            sum += d * d;
        }
    return sum;
}

/* Codes in range, the reported error is the stored one, and the search is at least as good as min-max. */
static void check_result(const quantised *q)
{
    CHECK(q->status == TMAC_OK, CASE);
    for (int32_t i = 0; i < M * q->shape.k; i++) CHECK(q->codes[i] < 1 << q->shape.bits, CASE);
    const double error = stored_error(q);
    CHECK(fabs(error - q->error[1]) <= 1e-3 * error + 1e-12, CASE);
    CHECK(q->error[1] <= q->error[0], CASE);
    double power = 0;
    for (int32_t i = 0; i < M * q->shape.k; i++) power += (double)q->w[i] * (double)q->w[i];
    CHECK(fabs(power - q->error[2]) <= 1e-5 * power, CASE);
}

static void fill_normal(quantised *q)
{
    for (int32_t i = 0; i < M * q->shape.k; i++) q->w[i] = random_normal();
}

static void test_every_shape(void)
{
    static const int32_t columns[] = {1, 3, 31, 32, 33, 127, 128, 129, 300}, groups[] = {32, 64, 128};
    static quantised q;
    for (int32_t bits = 1; bits <= 8; bits++)
        for (int32_t zeros = 0; zeros <= 1; zeros++)
            for (int32_t g = 0; g < 3; g++)
                for (int32_t k = 0; k < 9; k++) {
                    q.shape = (tmac_shape){M, columns[k], bits, groups[g], zeros, (float)(1 << (bits - 1))};
                    if (bits == 1) q.shape.zero = 0.5f;
                    fill_normal(&q);
                    run(&q);
                    check_result(&q);
                }
}

/* At 2 and 3 bits the search has less than half, and three quarters, of the error of min-max on a normal distribution. */
static void test_gain(void)
{
    static quantised q;
    for (int32_t zeros = 0; zeros <= 1; zeros++)
        for (int32_t bits = 2; bits <= 3; bits++) {
            q.shape = (tmac_shape){M, 256, bits, 128, zeros, (float)((1 << bits) - 1) / 2};
            double error[2] = {0, 0};
            for (int i = 0; i < 20; i++) {
                fill_normal(&q);
                run(&q);
                error[0] += q.error[0];
                error[1] += q.error[1];
            }
            CHECK(error[1] < (bits == 2 ? 0.7 : 0.9) * error[0], "bits %d zeros %d: %g %g", bits, zeros, error[0], error[1]);
        }
}

static void test_odd_groups(void)
{
    static quantised storage, *q = &storage;
    for (int32_t bits = 1; bits <= 4; bits++)
        for (int32_t zeros = 0; zeros <= 1; zeros++) {
            q->shape = (tmac_shape){M, 70, bits, 64, zeros, bits == 1 ? 0.5f : (float)(1 << (bits - 1))};
            for (int32_t i = 0; i < M * 70; i++) q->w[i] = 0;
            run(q);
            check_result(q);
            for (int32_t i = 0; i < M * 70; i++) CHECK(weight(q, i / 70, i % 70) == 0, CASE);

            for (int32_t i = 0; i < M * 70; i++) q->w[i] = -0.37f; /* constant: within a float16's rounding */
            run(q);
            check_result(q);
            for (int32_t i = 0; i < M * 70; i++) CHECK(fabs(weight(q, i / 70, i % 70) + 0.37) < 0.37 * 0x1p-10, CASE);

            for (int32_t i = 0; i < M * 70; i++) q->w[i] = i % 70 == 5 ? 1000 : 0.01f; /* one huge outlier */
            run(q);
            check_result(q);
            if (bits > 1 || zeros) /* two levels of one size cannot keep it */
                for (int32_t r = 0; r < M; r++) CHECK(fabs(weight(q, r, 5) - 1000) < 1, CASE);

            for (int32_t i = 0; i < M * 70; i++) q->w[i] = i % 2 ? 1e-9f : -1e-9f; /* below float16: zeros */
            run(q);
            CHECK(q->status == TMAC_OK, CASE);
            for (int32_t i = 0; i < M * 70; i++) CHECK(fabs(weight(q, i / 70, i % 70)) < 1e-6, CASE);
        }
}

/* Values on a grid are found exactly, also where the grid runs the other way and only a negative scale fits. */
static void test_exact_grid(void)
{
    static quantised storage, *q = &storage;
    for (int32_t bits = 2; bits <= 6; bits++)
        for (int32_t zeros = 0; zeros <= 1; zeros++)
            for (int32_t sign = -1; sign <= 1; sign += 2) {
                q->shape = (tmac_shape){M, 128, bits, 128, zeros, (float)(1 << (bits - 1))};
                for (int32_t i = 0; i < M * 128; i++)
                    q->w[i] = 0.25f * (float)(sign * (i % (1 << bits) - (1 << (bits - 1))));
                run(q);
                CHECK(q->error[1] < 1e-6 * M * 128, CASE);
            }
}

static void test_ternary_is_kept(void)
{
    static quantised storage, *q = &storage;
    q->shape = (tmac_shape){M, 200, 2, 64, 0, 1};
    for (int32_t i = 0; i < M * 200; i++) q->w[i] = 0.5f * (float)(random_below(3) - 1);
    run(q);
    CHECK(q->error[1] == 0, CASE);
    for (int32_t i = 0; i < M * 200; i++) CHECK(weight(q, i / 200, i % 200) == (double)q->w[i], CASE);
}

static void test_types(void)
{
    static quantised a, b;
    static uint16_t half[M * 100], brain[M * 100];
    a.shape = (tmac_shape){M, 100, 3, 32, 1, 0};
    for (int32_t i = 0; i < M * 100; i++) {
        brain[i] = (uint16_t)(tmac_bits_of_float(random_normal()) >> 16);
        a.w[i] = tmac_float_of_bf16(brain[i]);
        half[i] = tmac_half_of_float(a.w[i]);
        CHECK(fabsf(a.w[i]) < 0x1p-14f || tmac_float_of_half(half[i]) == a.w[i], "8 bits of mantissa fit in 11");
        a.w[i] = tmac_float_of_half(half[i]);
        brain[i] = (uint16_t)(tmac_bits_of_float(a.w[i]) >> 16);
        a.w[i] = tmac_float_of_bf16(brain[i]);
        half[i] = tmac_half_of_float(a.w[i]);
    }
    run(&a);
    const void *same[2] = {half, brain};
    for (int i = 0; i < 2; i++) {
        memset(&b, 0, sizeof b);
        const int status = tmac_quantize(&a.shape, M, same[i], i ? TMAC_BF16 : TMAC_F16, b.codes, b.scales, b.zeros, b.error);
        CHECK(status == TMAC_OK && !memcmp(a.codes, b.codes, M * 100), "type %d", i);
        CHECK(!memcmp(a.scales, b.scales, sizeof a.scales) && a.error[1] == b.error[1], "type %d", i);
    }
}

static void test_refusals(void)
{
    static quantised storage, *q = &storage;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    q->shape = (tmac_shape){M, 100, 2, 32, 1, 0};
    for (int i = 0; i < 3; i++)
        for (int32_t at = 0; at < 100; at += 33) {
            fill_normal(q);
            q->w[M * 100 - 1 - at] = bad[i];
            run(q);
            CHECK(q->status == TMAC_ERR_NONFINITE, "%f", (double)bad[i]);
        }
    fill_normal(q);
    q->w[7] = 1e30f;
    run(q);
    CHECK(q->status == TMAC_ERR_RANGE, "a scale of 1e30");
    fill_normal(q);
    q->shape.group_size = 0;
    run(q);
    CHECK(q->status == TMAC_ERR_ARGUMENT, "no group");
    q->shape.group_size = 32;
    CHECK(tmac_quantize(&q->shape, M, q->w, TMAC_I8, q->codes, q->scales, q->zeros, q->error) == TMAC_ERR_ARGUMENT, "int8");
    CHECK(tmac_quantize(&q->shape, 0, q->w, TMAC_F32, q->codes, q->scales, q->zeros, q->error) == TMAC_ERR_ARGUMENT, "no rows");
    CHECK(tmac_quantize(&q->shape, M, q->w, TMAC_F32, q->codes, q->scales, NULL, q->error) == TMAC_ERR_ARGUMENT, "no zeros");
}

int main(void)
{
    tmac_pool_start(2);
    test_every_shape();
    test_gain();
    test_odd_groups();
    test_exact_grid();
    test_ternary_is_kept();
    test_types();
    test_refusals();
    tmac_pool_start(1);
    return 0;
}
