/* y = W x for one token with NEON: segment by segment, one forward stream of weights. */
#include "fast.h"

enum { PREFETCH_BYTES = 2048 };

INLINE void gemv(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                 int32_t block_end, float *y, const int bits, const int exact, const int fast)
{
    const int octets = exact ? OCTETS / 2 : OCTETS; /* sums, indices and tables of 8 do not fit 32 registers */
    const int32_t n_segments = tmac_n_segments(shape), steps = tmac_steps_per_segment(shape);
    const int64_t segment_bytes = tmac_segment_bytes(shape);
    const uint8_t *at = weights + block_begin * tmac_block_bytes(shape);
    for (int32_t block = block_begin; block < block_end; block++) {
        float rows[TMAC_ROWS_PER_BLOCK] = {0};
        for (int32_t s = 0; s < n_segments; s++, at += segment_bytes) {
            /* planes pass over the segment one by one, so the next bytes of memory are asked for here */
            for (int64_t line = 0; line < segment_bytes; line += 64) __builtin_prefetch(at + line + PREFETCH_BYTES);
            for (int octet = 0; octet < OCTETS; octet += octets) {
                octet_total totals[OCTETS];
                const int8_t *tables = quad_tables(lut, s * steps * 2, 0);
                const uint8_t *first = at + octet * INDEX_BYTES;
                const int64_t quad_stride = (1 + exact) * TABLE_BYTES;
                if (fast) segment_average(first, tables, quad_stride, steps, totals, bits, octets, 1);
                else segment_lookup(first, tables, quad_stride, steps, totals, bits, exact, octets, 1);
                UNROLL for (int i = 0; i < octets * 2; i++)
                {
                    const int r = octet * OCTET_ROWS + i * 4;
                    vst1q_f32(rows + r, add_segment(shape, at + steps * bits * VECTOR_BYTES, r,
                                                    totals[i / 2].rows[i % 2], lut->half_scales[s], lut->sums[s],
                                                    vld1q_f32(rows + r)));
                }
            }
        }
        for (int r = 0; r < TMAC_ROWS_PER_BLOCK; r += 4) {
            const int32_t row = block * TMAC_ROWS_PER_BLOCK + r;
            store_rows(y + row, finish_rows(shape, at, lut, 0, r, vld1q_f32(rows + r)), shape->m - row);
        }
        at += shape->group_size ? 0 : 4 * TMAC_ROWS_PER_BLOCK * (1 + shape->has_zeros);
    }
}

#define GEMV(bits)                                                                                                  \
    static void tmac_lut_gemv_##bits##_neon(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut,  \
                                            int32_t block_begin, int32_t block_end, float *y)                      \
    {                                                                                                               \
        if (lut->exact)                                                                                             \
            gemv(shape, weights, lut, block_begin, block_end, y, bits, 1, 0);                                       \
        else if (lut->fast)                                                                                         \
            gemv(shape, weights, lut, block_begin, block_end, y, bits, 0, 1);                                       \
        else                                                                                                        \
            gemv(shape, weights, lut, block_begin, block_end, y, bits, 0, 0);                                       \
    }
GEMV(1) GEMV(2) GEMV(3) GEMV(4) GEMV(5) GEMV(6) GEMV(7) GEMV(8)

void tmac_lut_gemv_neon(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                        int32_t block_end, float *y)
{
    static void (*const gemv_of_bits[])(const tmac_shape *, const uint8_t *, const tmac_lut *, int32_t, int32_t,
                                        float *) = {
        tmac_lut_gemv_1_neon, tmac_lut_gemv_2_neon, tmac_lut_gemv_3_neon, tmac_lut_gemv_4_neon,
        tmac_lut_gemv_5_neon, tmac_lut_gemv_6_neon, tmac_lut_gemv_7_neon, tmac_lut_gemv_8_neon,
    };
    gemv_of_bits[shape->bits - 1](shape, weights, lut, block_begin, block_end, y);
}
