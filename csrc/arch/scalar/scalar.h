/* What the scalar kernels share: addresses of tables, and the product of one row block with one token. */
#ifndef TMAC_ARCH_SCALAR_H
#define TMAC_ARCH_SCALAR_H
#include "../../half.h"
#include "../../kernels.h"

#include <math.h>
#include <string.h>

/* Tables of quad Q (16 columns) and token t: 64 bytes, or 2 x 64 where exact (lo, then hi). */
static inline int8_t *quad_tables(const tmac_lut *lut, int32_t quad, int32_t t)
{
    return lut->tables + ((int64_t)quad * lut->n + t) * (1 + lut->exact) * TABLE_BYTES;
}

/* sums[r] = sum over planes p of 2^p * (sum of the entries that plane p of row r looks up), over one segment.
 * Byte i of a vector belongs to row i/4 and k-group i%4 of its quad. */
static inline void segment_lookup(const tmac_shape *shape, const uint8_t *segment, const tmac_lut *lut, int32_t s,
                                  int32_t t, int32_t sums[TMAC_ROWS_PER_BLOCK])
{
    const int32_t bits = shape->bits, quads = tmac_segment_columns(shape) / QUAD_COLUMNS;
    memset(sums, 0, TMAC_ROWS_PER_BLOCK * sizeof *sums);
    for (int32_t quad = 0; quad < quads; quad++) {
        const int8_t *table = quad_tables(lut, s * quads + quad, t);
        const uint8_t *step = segment + quad / 2 * bits * VECTOR_BYTES;
        for (int32_t plane = 0; plane < bits; plane++) {
            const int shared = plane == bits - 1 && bits % 2; /* the last plane of odd bits: one vector, both quads */
            const uint8_t *vector = step + (shared ? plane : plane / 2 * 2 + quad % 2) * VECTOR_BYTES;
            const int shift = (shared ? quad % 2 : plane % 2) * 4;
            for (int32_t i = 0; i < VECTOR_BYTES; i++) {
                int32_t index = i % 4 * 16 + (vector[i] >> shift & 15);
                int32_t entry = lut->exact ? EXACT_SPLIT * table[TABLE_BYTES + index] + table[index] : table[index];
                sums[i / 4] += entry * (1 << plane);
            }
        }
    }
}

/* Index of one row, plane and k-group of a segment. */
static inline int32_t plane_index(const tmac_shape *shape, const uint8_t *segment, int32_t row, int32_t plane,
                                  int32_t group)
{
    const int32_t bits = shape->bits, quad = group / 4, shared = plane == bits - 1 && bits % 2;
    const uint8_t *step = segment + quad / 2 * bits * VECTOR_BYTES;
    const uint8_t *vector = step + (shared ? plane : plane / 2 * 2 + quad % 2) * VECTOR_BYTES;
    return vector[row * 4 + group % 4] >> (shared ? quad % 2 : plane % 2) * 4 & 15;
}

/* `segment_lookup` of TMAC_TABLES_FAST: sums[r] is the estimate by averages (kernels.h). */
static inline void segment_average(const tmac_shape *shape, const uint8_t *segment, const tmac_lut *lut, int32_t s,
                                   int32_t t, int32_t sums[TMAC_ROWS_PER_BLOCK])
{
    const int32_t quads = tmac_segment_columns(shape) / QUAD_COLUMNS;
    for (int32_t r = 0; r < TMAC_ROWS_PER_BLOCK; r++) {
        sums[r] = 0;
        for (int32_t plane = 0; plane < shape->bits; plane++)
            for (int32_t step = 0; step < quads / 2; step++) {
                int32_t e[8];
                for (int32_t g = 0; g < 8; g++) {
                    const int8_t *table = quad_tables(lut, s * quads + step * 2 + g / 4, t) + g % 4 * 16;
                    e[g] = (uint8_t)table[plane_index(shape, segment, r, plane, step * 8 + g)];
                }
                for (int32_t n = 4; n > 1; n /= 2) /* e[0], e[1]: the averages of the even and of the odd k-groups */
                    for (int32_t g = 0; g < n; g++) e[g] = (e[g] + e[g + n] + 1) >> 1;
                sums[r] += (4 * (e[0] - 128 + e[1] - 128) - 4) * (1 << plane);
            }
    }
}

/* Scale (which = 0) or zero point (which = 1) of a row, from a group tail (float16) or a row tail (float32). */
static inline float tail_value(const tmac_shape *shape, const uint8_t *tail, int which, int32_t row)
{
    int32_t i = which * TMAC_ROWS_PER_BLOCK + row;
    uint16_t half;
    float value;
    if (shape->group_size) return memcpy(&half, tail + i * 2, 2), tmac_float_of_half(half);
    return memcpy(&value, tail + i * 4, 4), value;
}

/* What the planes leave out: W / scale = sum of 2^p * (+-1)/2 + row_constant. */
static inline float row_constant(const tmac_shape *shape, const uint8_t *tail, int32_t row)
{
    float middle = (float)((1 << shape->bits) - 1) / 2;
    return middle - (shape->has_zeros ? tail_value(shape, tail, 1, row) : shape->zero);
}

/* One row block times one token over segments [segment_begin, segment_end); y: the block's first row. */
static inline void block_product(const tmac_shape *shape, const uint8_t *block, const tmac_lut *lut, int32_t t,
                                 int32_t n_rows, int32_t segment_begin, int32_t segment_end, float *y)
{
    const int64_t segment_bytes = tmac_segment_bytes(shape);
    const int32_t n_segments = tmac_n_segments(shape);
    const int64_t weight_bytes = (int64_t)tmac_steps_per_segment(shape) * shape->bits * VECTOR_BYTES;
    if (segment_begin == 0)
        for (int32_t r = 0; r < n_rows; r++) y[r] = 0.0f;
    for (int32_t s = segment_begin; s < segment_end; s++) {
        const uint8_t *segment = block + s * segment_bytes, *tail = segment + weight_bytes;
        const float half_scale = lut->half_scales[(int64_t)s * lut->n + t], sum = lut->sums[(int64_t)s * lut->n + t];
        int32_t sums[TMAC_ROWS_PER_BLOCK];
        (lut->fast ? segment_average : segment_lookup)(shape, segment, lut, s, t, sums);
        for (int32_t r = 0; r < n_rows; r++)
            if (shape->group_size)
                y[r] = fmaf(tail_value(shape, tail, 0, r),
                            fmaf((float)sums[r], half_scale, row_constant(shape, tail, r) * sum), y[r]);
            else
                y[r] = fmaf((float)sums[r], half_scale, y[r]);
    }
    if (segment_end < n_segments) return;
    const uint8_t *tail = block + n_segments * segment_bytes;
    for (int32_t r = 0; r < n_rows; r++) {
        if (!shape->group_size)
            y[r] = tail_value(shape, tail, 0, r) * fmaf(row_constant(shape, tail, r), lut->totals[t], y[r]);
        if (lut->exact) y[r] *= lut->token_scales[t];
    }
}

static inline int32_t rows_in_block(const tmac_shape *shape, int32_t block)
{
    int32_t left = shape->m - block * TMAC_ROWS_PER_BLOCK;
    return left < TMAC_ROWS_PER_BLOCK ? left : TMAC_ROWS_PER_BLOCK;
}

float tmac_quantize_row_scalar(const float *x, int32_t k, int8_t *q);
int tmac_lut_build_scalar(const float *x, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                          const tmac_lut *lut);
void tmac_lut_build_exact_scalar(const int8_t *q, int32_t k, int32_t t, int32_t segment_begin, int32_t segment_end,
                                 const tmac_lut *lut);
void tmac_lut_gemv_scalar(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                          int32_t block_end, float *y);
void tmac_lut_gemm_scalar(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                          int32_t block_end, int32_t segment_begin, int32_t segment_end, float *y, int64_t ldy);
void tmac_ternary_build_scalar(const int8_t *q, int32_t k, int32_t t, int32_t step_begin, int32_t step_end,
                               const tmac_lut *lut);
void tmac_ternary_gemv_scalar(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, float *y);
void tmac_ternary_gemm_scalar(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, void *scratch, float *y, int64_t ldy);
#endif
