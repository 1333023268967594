/* Groups of float weights to codes, a scale and a zero point, of least squared error.
 *
 * For any codes q the best scale and zero point are a linear regression of w on q, and the error of that fit follows
 * from sums of q, q*q and q*w alone. So: try a range of widths, keep the two of least error, alternate between fitting
 * and rounding from there, and measure what is left with the float16 values that will be stored.
 * Loops are written over 4 lanes with the compilers' vector extension, for any CPU. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "half.h"
#include "matrix.h"
#include "threadpool.h"

enum { LANES = 4, MAX_GROUP = 128, N_WIDTHS = 16, N_WIDTHS_FINE = 4, N_STARTS = 2, N_ROUNDS = 4 };

typedef float lanes __attribute__((vector_size(16)));

/* One group. w is padded to whole lanes with copies of the last weight, whose share is taken out of every sum. */
typedef struct {
    _Alignas(16) float w[MAX_GROUP];
    int32_t n, n_padded;
    int32_t top;      /* the highest code, 2^bits - 1 */
    int32_t has_zeros;
    float zero;       /* the common zero point where has_zeros is 0 */
    float low, high;  /* of w */
    double sum, sum2; /* of w and w*w */
} group;

/* W = (q - zero) * scale. */
typedef struct {
    float scale, zero;
    double error;
} fit;

static inline lanes splat(float x) { return (lanes){x, x, x, x}; }

/* The comparisons are minps and maxps once compiled. */
static inline lanes at_least(lanes x, float low)
{
    for (int j = 0; j < LANES; j++) x[j] = x[j] > low ? x[j] : low;
    return x;
}

static inline lanes at_most(lanes x, float high)
{
    for (int j = 0; j < LANES; j++) x[j] = x[j] < high ? x[j] : high;
    return x;
}

/* clamp(rint(w * inverse + zero), 0, top): 1.5 * 2^23 leaves no bits for a fraction. */
static inline lanes round_codes(lanes w, lanes inverse, lanes zero, float top)
{
    const lanes magic = splat(0x1.8p23f);
    return at_most(at_least(w * inverse + zero, 0), top) + magic - magic;
}

static inline double total(lanes x) { return ((double)x[0] + (double)x[1]) + ((double)x[2] + (double)x[3]); }

static float inverse_of(float scale) { return scale != 0 ? 1 / scale : 0; }

/* Sums over the codes that (scale, zero) rounds to. */
typedef struct {
    double q, q2, qw;
} code_sums;

static code_sums sum_codes(const group *g, float scale, float zero)
{
    const lanes inverse = splat(inverse_of(scale)), z = splat(zero);
    const float top = (float)g->top;
    lanes q = splat(0), sum_q = q, sum_q2 = q, sum_qw = q;
    for (int32_t i = 0; i < g->n_padded; i += LANES) {
        const lanes w = *(const lanes *)(g->w + i);
        q = round_codes(w, inverse, z, top);
        sum_q += q;
        sum_q2 += q * q;
        sum_qw += q * w;
    }
    const double extra = g->n_padded - g->n, last = (double)q[LANES - 1], w = (double)g->w[g->n_padded - 1];
    return (code_sums){total(sum_q) - extra * last, total(sum_q2) - extra * last * last,
                       total(sum_qw) - extra * last * w};
}

/* The least squares scale and zero point for the codes that (scale, zero) rounds to, and its error. */
static fit refit(const group *g, float scale, float zero)
{
    const code_sums s = sum_codes(g, scale, zero);
    if (!g->has_zeros) {
        const double z = (double)g->zero, dd = s.q2 - 2 * z * s.q + g->n * z * z, dw = s.qw - z * g->sum;
        return dd > 0 ? (fit){(float)(dw / dd), g->zero, g->sum2 - dw * dw / dd} : (fit){0, g->zero, g->sum2};
    }
    const double det = g->n * s.q2 - s.q * s.q, mean = g->sum / g->n;
    if (!(det > 0)) return (fit){0, 0, INFINITY};
    const double slope = (g->n * s.qw - s.q * g->sum) / det, offset = mean - slope * s.q / g->n;
    const double error = g->sum2 - offset * g->sum - slope * s.qw;
    return slope != 0 ? (fit){(float)slope, (float)(-offset / slope), error} : (fit){0, 0, INFINITY};
}

/* What is stored: both rounded to float16, the error measured with exactly these. */
static fit stored(const group *g, float scale, float zero)
{
    fit f = {tmac_float_of_half(tmac_half_of_float(scale)), zero, INFINITY};
    if (g->has_zeros) f.zero = tmac_float_of_half(tmac_half_of_float(zero));
    if (!isfinite(f.scale) || !isfinite(f.zero)) return f;
    const lanes inverse = splat(inverse_of(f.scale)), z = splat(f.zero), s = splat(f.scale);
    const float top = (float)g->top;
    lanes sum = splat(0), d = sum;
    for (int32_t i = 0; i < g->n_padded; i += LANES) {
        const lanes w = *(const lanes *)(g->w + i);
        d = w - (round_codes(w, inverse, z, top) - z) * s;
        sum += d * d;
    }
    f.error = total(sum) - (g->n_padded - g->n) * (double)d[LANES - 1] * (double)d[LANES - 1];
    return f;
}

static void keep_better(fit *best, fit f)
{
    if (f.error < best->error) *best = f;
}

/* A float16 scale with the group's own mean as the only value in use, for groups that no line fits. */
static fit constant_fit(const group *g)
{
    const float mean = (float)(g->sum / g->n);
    return g->has_zeros ? stored(g, mean, -1) : stored(g, 0, g->zero);
}

/* Plain min-max rounding: the extremes of the group (or of its magnitudes) fall on the extreme codes. */
static fit min_max(const group *g)
{
    const float top = (float)g->top;
    if (g->has_zeros) {
        const float scale = (g->high - g->low) / top;
        return scale > 0 ? stored(g, scale, -g->low / scale) : constant_fit(g);
    }
    const float below = g->zero > 0 ? -g->low / g->zero : 0, above = top > g->zero ? g->high / (top - g->zero) : 0;
    return stored(g, below > above ? below : above, g->zero);
}

/* With 64 codes and more, no more than four codes of clipping pay, and few widths find the least error. */
static int n_widths(const group *g) { return g->top >= 63 ? N_WIDTHS_FINE : N_WIDTHS; }
/* Start i of the search: the range of the group, narrowed in steps, and shifted by a part of a code (with zero points)
 * or mirrored (without). */
static fit start(const group *g, int i, float shift)
{
    const float top = (float)g->top;
    const float narrowest = g->top == 1 ? 0.3f : g->top == 3 ? 0.45f : g->top == 7 ? 0.6f : 1 - 4 / (top + 1);
    const float width = 1 - (1 - narrowest) * (float)i / (float)(n_widths(g) - 1);
    if (g->has_zeros) {
        const float scale = (g->high - g->low) * width / top;
        return (fit){scale, scale > 0 ? top / 2 + shift - (g->low + g->high) / 2 / scale : 0, 0};
    }
    const float levels = g->zero > top - g->zero ? g->zero : top - g->zero; /* on the longer side of zero */
    const float amax = -g->low > g->high ? -g->low : g->high;
    return (fit){amax * width / levels, g->zero, 0};
}

static void keep_best_two(fit best[N_STARTS], fit f)
{
    if (f.error < best[0].error) best[1] = best[0], best[0] = f;
    else keep_better(&best[1], f);
}

static fit search(const group *g, fit plain)
{
    fit best[N_STARTS] = {{.error = INFINITY}, {.error = INFINITY}}, found = plain;
    const int mirrored = !g->has_zeros && g->zero * 2 != (float)g->top;
    for (int i = 0; i < n_widths(g); i++)
        for (int shift = g->has_zeros ? -1 : 0; shift <= g->has_zeros; shift++) {
            const fit f = start(g, i, 0.3f * (float)shift);
            keep_best_two(best, refit(g, f.scale, f.zero));
            if (mirrored) keep_best_two(best, refit(g, -f.scale, f.zero));
        }
    for (int b = 0; b < N_STARTS; b++) {
        fit f = best[b];
        for (int i = 0; i < N_ROUNDS && isfinite(f.error); i++) {
            const fit next = refit(g, f.scale, f.zero);
            if (!(next.error < f.error)) break;
            f = next;
        }
        if (isfinite(f.error)) keep_better(&found, stored(g, f.scale, f.zero));
    }
    keep_better(&found, constant_fit(g));
    return found;
}

/* Fill in padding, range and sums from w[0 .. n). */
static void measure(group *g)
{
    const float last = g->w[g->n - 1];
    g->n_padded = (g->n + LANES - 1) / LANES * LANES;
    for (int32_t i = g->n; i < g->n_padded; i++) g->w[i] = last;
    lanes sum = splat(0), sum2 = sum, low = splat(last), high = low;
    for (int32_t i = 0; i < g->n_padded; i += LANES) {
        const lanes w = *(const lanes *)(g->w + i);
        sum += w;
        sum2 += w * w;
        for (int j = 0; j < LANES; j++) {
            low[j] = w[j] < low[j] ? w[j] : low[j];
            high[j] = w[j] > high[j] ? w[j] : high[j];
        }
    }
    const double extra = g->n_padded - g->n;
    g->sum = total(sum) - extra * (double)last;
    g->sum2 = total(sum2) - extra * (double)last * (double)last;
    g->low = g->high = last;
    for (int j = 0; j < LANES; j++) {
        g->low = low[j] < g->low ? low[j] : g->low;
        g->high = high[j] > g->high ? high[j] : g->high;
    }
}

typedef struct {
    const tmac_shape *shape;
    const void *weights;
    int type;
    uint8_t *codes;
    uint16_t *scales, *zeros;
    double *errors; /* (n_rows, 3): summed in row order afterwards, so that threads do not matter */
    _Atomic int status;
} quantize_job;

/* n weights of a row as float32; 0 if one is NaN or infinite. */
static int load(const void *weights, int type, int64_t at, int32_t n, float *w)
{
    uint32_t largest = 0;
    if (type == TMAC_F32) memcpy(w, (const float *)weights + at, (size_t)n * sizeof(float));
    else if (type == TMAC_F16)
        for (int32_t i = 0; i < n; i++) w[i] = tmac_float_of_half(((const uint16_t *)weights)[at + i]);
    else
        for (int32_t i = 0; i < n; i++) w[i] = tmac_float_of_bf16(((const uint16_t *)weights)[at + i]);
    for (int32_t i = 0; i < n; i++) {
        const uint32_t magnitude = tmac_bits_of_float(w[i]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest < 0x7f800000;
}

static void write_codes(const group *g, fit f, uint8_t *codes)
{
    const lanes inverse = splat(inverse_of(f.scale)), z = splat(f.zero);
    uint8_t padded[MAX_GROUP];
    for (int32_t i = 0; i < g->n_padded; i += LANES) {
        const lanes q = round_codes(*(const lanes *)(g->w + i), inverse, z, (float)g->top);
        for (int j = 0; j < LANES; j++) padded[i + j] = (uint8_t)q[j];
    }
    memcpy(codes, padded, (size_t)g->n);
}

static void quantize_row(quantize_job *job, int32_t row)
{
    const tmac_shape *shape = job->shape;
    const int32_t n_groups = (shape->k + shape->group_size - 1) / shape->group_size;
    group g = {.top = (1 << shape->bits) - 1, .has_zeros = shape->has_zeros, .zero = shape->zero};
    for (int32_t i = 0; i < n_groups; i++) {
        const int64_t column = (int64_t)i * shape->group_size, at = (int64_t)row * shape->k + column;
        g.n = (int32_t)(shape->k - column < shape->group_size ? shape->k - column : shape->group_size);
        if (!load(job->weights, job->type, at, g.n, g.w)) {
            job->status = TMAC_ERR_NONFINITE;
            return;
        }
        measure(&g);
        const fit plain = min_max(&g), best = search(&g, plain);
        if (!isfinite(best.error)) {
            job->status = TMAC_ERR_RANGE;
            return;
        }
        write_codes(&g, best, job->codes + at);
        job->scales[(int64_t)row * n_groups + i] = tmac_half_of_float(best.scale);
        if (shape->has_zeros) job->zeros[(int64_t)row * n_groups + i] = tmac_half_of_float(best.zero);
        double *errors = job->errors + (int64_t)row * 3;
        errors[0] += isfinite(plain.error) ? plain.error : best.error;
        errors[1] += best.error;
        errors[2] += g.sum2;
    }
}

static void quantize_rows(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    for (int32_t row = begin; row < end; row++) quantize_row(context, row);
}

int tmac_quantize(const tmac_shape *shape, int32_t n_rows, const void *weights, int type, uint8_t *codes,
                  uint16_t *scales, uint16_t *zeros, double *error)
{
    if (!tmac_shape_valid(shape) || shape->group_size == 0 || n_rows < 1 || !weights || !codes || !scales || !error ||
        (shape->has_zeros && !zeros) || (type != TMAC_F32 && type != TMAC_F16 && type != TMAC_BF16))
        return TMAC_ERR_ARGUMENT;
    double *errors = calloc((size_t)n_rows * 3, sizeof *errors);
    if (!errors) return TMAC_ERR_MEMORY;
    quantize_job job = {shape, weights, type, codes, scales, zeros, errors, TMAC_OK};
    tmac_parallel_for(n_rows, 1, quantize_rows, &job);
    for (int64_t i = 0; i < (int64_t)n_rows * 3; i++) error[i % 3] += errors[i];
    free(errors);
    return job.status;
}
