/* y = W x for one token: scalar.h walks the layout; this is the loop over row blocks. */
#include "scalar.h"

void tmac_lut_gemv_scalar(const tmac_shape *shape, const uint8_t *weights, const tmac_lut *lut, int32_t block_begin,
                          int32_t block_end, float *y)
{
    const int64_t block_bytes = tmac_block_bytes(shape);
    for (int32_t block = block_begin; block < block_end; block++)
        block_product(shape, weights + block * block_bytes, lut, 0, rows_in_block(shape, block), 0,
                      tmac_n_segments(shape), y + (int64_t)block * TMAC_ROWS_PER_BLOCK);
}
