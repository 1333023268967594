/* y = W x for one token with AVX-512: four row blocks side by side, each a forward stream of weights.
 *
 * Tried, and slower from memory: software prefetch at any distance (70-80 % of the read bandwidth instead of 98 %: the
 * hardware's stream prefetch is better left alone), and K panels over several row blocks (50-60 %: the stream breaks). */
#include "avx512.h"

/* One step (32 columns) of `blocks` row blocks, block_bytes apart: every plane of both quads for their tiles. */
INLINE void step_lookup(const uint8_t *step, const int64_t block_bytes, const int8_t *tables, tile_sum *sums,
                        const int blocks, const int bits, const int exact)
{
    const int stride = (1 + exact) * TABLE_BYTES;
    __m512i lo[2], hi[2];
    UNROLL for (int quad = 0; quad < 2; quad++)
    {
        lo[quad] = _mm512_load_si512(tables + quad * stride);
        hi[quad] = exact ? _mm512_load_si512(tables + quad * stride + TABLE_BYTES) : lo[quad];
    }
    UNROLL for (int i = 0; i < blocks * bits; i++)
    {
        const int v = i % bits;
        const uint8_t *vector = step + i / bits * block_bytes + v * VECTOR_BYTES;
        const int shared = bits % 2 && v == bits - 1; /* one plane of both quads, otherwise two planes of one */
        const int low_plane = shared ? v : v / 2 * 2, high_plane = shared ? v : low_plane + 1;
        const int low_quad = shared ? 0 : v % 2, high_quad = shared ? 1 : v % 2;
        UNROLL for (int tile = 0; tile < TILES_PER_BLOCK; tile++)
        {
            __m512i w = _mm512_load_si512(vector + tile * TILE_BYTES);
            tile_sum *sum = &sums[i / bits * TILES_PER_BLOCK + tile];
            accumulate(sum, low_index(w), lo[low_quad], hi[low_quad], low_plane, bits, exact);
            accumulate(sum, high_index(w), lo[high_quad], hi[high_quad], high_plane, bits, exact);
        }
    }
}

/* `blocks` row blocks from `row` on, whose weights start at `at`. */
INLINE void gemv_blocks(const tmac_shape *shape, const uint8_t *at, const tmac_lut *lut, int32_t row, float *y,
                        const int blocks, const int bits, const int exact)
{
    enum { MAX_TILES = GEMV_BLOCKS * TILES_PER_BLOCK };
    const int32_t n_segments = tmac_n_segments(shape), steps = tmac_steps_per_segment(shape);
    const int64_t block_bytes = tmac_block_bytes(shape);
    const int has_zeros = shape->has_zeros, grouped = shape->group_size != 0, tiles = blocks * TILES_PER_BLOCK;
    const float middle = plane_middle(bits);
    const int8_t *tables = lut->tables;
    __m512 rows[MAX_TILES];
    UNROLL for (int i = 0; i < tiles; i++) rows[i] = _mm512_setzero_ps();

    for (int32_t s = 0; s < n_segments; s++) {
        tile_sum sums[MAX_TILES];
        UNROLL for (int i = 0; i < tiles; i++) sums[i].lo = sums[i].hi = _mm512_setzero_si512();
        for (int32_t step = 0; step < steps; step++) {
            step_lookup(at, block_bytes, tables, sums, blocks, bits, exact);
            at += bits * VECTOR_BYTES;
            tables += 2 * (1 + exact) * TABLE_BYTES;
        }
        const __m512 half_scale = _mm512_set1_ps(lut->half_scales[s]), sum = _mm512_set1_ps(lut->sums[s]);
        const __m512 offset = _mm512_mul_ps(_mm512_set1_ps(middle - shape->zero), sum);
        UNROLL for (int i = 0; i < tiles; i++)
        {
            const uint8_t *tail = at + i / TILES_PER_BLOCK * block_bytes;
            const int tile = i % TILES_PER_BLOCK;
            __m512 entries = sum_to_float(sums[i], bits, exact), constant = offset;
            if (!grouped) {
                rows[i] = _mm512_fmadd_ps(entries, half_scale, rows[i]);
                continue;
            }
            if (has_zeros)
                constant = _mm512_mul_ps(_mm512_sub_ps(_mm512_set1_ps(middle), group_tail(tail, 1, tile)), sum);
            rows[i] = _mm512_fmadd_ps(group_tail(tail, 0, tile), _mm512_fmadd_ps(entries, half_scale, constant), rows[i]);
        }
        at += grouped ? 2 * TMAC_ROWS_PER_BLOCK * (1 + has_zeros) : 0;
    }
    UNROLL for (int i = 0; i < tiles; i++)
    {
        const int32_t r = row + i * TMAC_ROWS_PER_TILE;
        __m512 value = rows[i];
        if (!grouped)
            value = finish_rows(shape, at + i / TILES_PER_BLOCK * block_bytes, i % TILES_PER_BLOCK, value, lut->totals[0]);
        if (exact) value = _mm512_mul_ps(value, _mm512_set1_ps(lut->token_scales[0]));
        _mm512_mask_storeu_ps(y + r, rows_inside(shape->m, r), value);
    }
}

/* Row blocks side by side share each load of a table, and one thread alone gets a fifth to a third more of 1 to 3 bits out
 * of memory when it reads four streams: two give less at 2 and 3 bits, eight less at all. Exact tables of K = 4096 fill
 * the whole L1 cache. */
INLINE int blocks_at_once(const int bits, const int exact)
{
    if (exact) return bits <= 2 ? 2 : 1;
    return bits <= 4 ? GEMV_BLOCKS : 1;
}

INLINE void gemv(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                 int32_t block_end, float *y, const int bits, const int exact)
{
    const int64_t block_bytes = tmac_block_bytes(shape);
    const int blocks = blocks_at_once(bits, exact);
    int32_t block = block_begin;
    for (; block + blocks <= block_end; block += blocks)
        gemv_blocks(shape, weights + block * block_bytes, lut, block * TMAC_ROWS_PER_BLOCK, y, blocks, bits, exact);
    for (; block < block_end; block++)
        gemv_blocks(shape, weights + block * block_bytes, lut, block * TMAC_ROWS_PER_BLOCK, y, 1, bits, exact);
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
