/* y = W x for n tokens over one K panel: scalar.h walks the layout; this is the loop over row blocks and tokens. */
#include "scalar.h"

void tmac_lut_gemm_scalar(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                          int32_t block_end, int32_t segment_begin, int32_t segment_end, float *y, int64_t ldy)
{
    const int64_t block_bytes = tmac_block_bytes(shape);
    for (int32_t block = block_begin; block < block_end; block++)
        for (int32_t t = 0; t < lut->n; t++)
            block_product(shape, weights + block * block_bytes, lut, t, rows_in_block(shape, block), segment_begin,
                          segment_end, y + t * ldy + (int64_t)block * TMAC_ROWS_PER_BLOCK);
}
