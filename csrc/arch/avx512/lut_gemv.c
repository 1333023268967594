/* y = W x for one token with AVX-512: the four tiles of a row block side by side, one forward stream of weights. */
#include "avx512.h"

enum { PREFETCH_BYTES = 2048 };

/* One step (32 columns): every plane of both quads for the four tiles. */
INLINE void step_lookup(const uint8_t *step, const int8_t *tables, tile_sum sums[TILES_PER_BLOCK], const int bits,
                        const int exact)
{
    const int stride = (1 + exact) * TABLE_BYTES;
    __m512i lo[2], hi[2];
    UNROLL for (int quad = 0; quad < 2; quad++)
    {
        lo[quad] = _mm512_load_si512(tables + quad * stride);
        hi[quad] = exact ? _mm512_load_si512(tables + quad * stride + TABLE_BYTES) : lo[quad];
    }
    UNROLL for (int v = 0; v < bits; v++)
    {
        const int shared = bits % 2 && v == bits - 1; /* one plane of both quads, otherwise two planes of one */
        const int low_plane = shared ? v : v / 2 * 2, high_plane = shared ? v : low_plane + 1;
        const int low_quad = shared ? 0 : v % 2, high_quad = shared ? 1 : v % 2;
        UNROLL for (int tile = 0; tile < TILES_PER_BLOCK; tile++)
        {
            const uint8_t *at = step + v * VECTOR_BYTES + tile * TILE_BYTES;
            __m512i w = _mm512_load_si512(at);
            _mm_prefetch((const char *)at + PREFETCH_BYTES, _MM_HINT_T0);
            accumulate(&sums[tile], low_index(w), lo[low_quad], hi[low_quad], low_plane, bits, exact);
            accumulate(&sums[tile], high_index(w), lo[high_quad], hi[high_quad], high_plane, bits, exact);
        }
    }
}

INLINE void gemv(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                 int32_t block_end, float *y, const int bits, const int exact)
{
    const int32_t n_segments = tmac_n_segments(shape), steps = tmac_steps_per_segment(shape);
    const int has_zeros = shape->has_zeros, grouped = shape->group_size != 0;
    const float middle = plane_middle(bits);
    const uint8_t *at = weights + block_begin * tmac_block_bytes(shape);
    for (int32_t block = block_begin; block < block_end; block++) {
        const int8_t *tables = lut->tables;
        __m512 rows[TILES_PER_BLOCK];
        UNROLL for (int tile = 0; tile < TILES_PER_BLOCK; tile++) rows[tile] = _mm512_setzero_ps();

        for (int32_t s = 0; s < n_segments; s++) {
            tile_sum sums[TILES_PER_BLOCK];
            UNROLL for (int tile = 0; tile < TILES_PER_BLOCK; tile++)
                sums[tile].lo = sums[tile].hi = _mm512_setzero_si512();
            for (int32_t step = 0; step < steps; step++) {
                step_lookup(at, tables, sums, bits, exact);
                at += bits * VECTOR_BYTES;
                tables += 2 * (1 + exact) * TABLE_BYTES;
            }
            const __m512 half_scale = _mm512_set1_ps(lut->half_scales[s]), sum = _mm512_set1_ps(lut->sums[s]);
            const __m512 offset = _mm512_mul_ps(_mm512_set1_ps(middle - shape->zero), sum);
            UNROLL for (int tile = 0; tile < TILES_PER_BLOCK; tile++)
            {
                __m512 entries = sum_to_float(sums[tile], bits, exact), constant = offset;
                if (!grouped) {
                    rows[tile] = _mm512_fmadd_ps(entries, half_scale, rows[tile]);
                    continue;
                }
                if (has_zeros)
                    constant = _mm512_mul_ps(_mm512_sub_ps(_mm512_set1_ps(middle), group_tail(at, 1, tile)), sum);
                rows[tile] = _mm512_fmadd_ps(group_tail(at, 0, tile), _mm512_fmadd_ps(entries, half_scale, constant),
                                             rows[tile]);
            }
            at += grouped ? 2 * TMAC_ROWS_PER_BLOCK * (1 + has_zeros) : 0;
        }
        UNROLL for (int tile = 0; tile < TILES_PER_BLOCK; tile++)
        {
            const int32_t row = block * TMAC_ROWS_PER_BLOCK + tile * TMAC_ROWS_PER_TILE;
            __m512 value = rows[tile];
            if (!grouped) value = finish_rows(shape, at, tile, value, lut->totals[0]);
            if (exact) value = _mm512_mul_ps(value, _mm512_set1_ps(lut->token_scales[0]));
            _mm512_mask_storeu_ps(y + row, rows_inside(shape->m, row), value);
        }
        at += grouped ? 0 : 4 * TMAC_ROWS_PER_BLOCK * (1 + has_zeros);
    }
}

#define GEMV(bits)                                                                                                   \
    static void tmac_lut_gemv_##bits##_avx512(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, \
                                              int32_t block_begin, int32_t block_end, float *y)                     \
    {                                                                                                                \
        if (lut->exact)                                                                                              \
            gemv(shape, weights, lut, block_begin, block_end, y, bits, 1);                                           \
        else                                                                                                         \
            gemv(shape, weights, lut, block_begin, block_end, y, bits, 0);                                           \
    }
GEMV(1) GEMV(2) GEMV(3) GEMV(4) GEMV(5) GEMV(6) GEMV(7) GEMV(8)

void tmac_lut_gemv_avx512(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                          int32_t block_end, float *y)
{
    static void (*const gemv_of_bits[])(const tmac_shape *, const uint8_t *, const tmac_lut *, int32_t, int32_t,
                                        float *) = {
        tmac_lut_gemv_1_avx512, tmac_lut_gemv_2_avx512, tmac_lut_gemv_3_avx512, tmac_lut_gemv_4_avx512,
        tmac_lut_gemv_5_avx512, tmac_lut_gemv_6_avx512, tmac_lut_gemv_7_avx512, tmac_lut_gemv_8_avx512,
    };
    gemv_of_bits[shape->bits - 1](shape, weights, lut, block_begin, block_end, y);
}
