/* y = W x for n tokens and a ternary slab with AVX2.
 *
 * For many tokens a table has a row of tokens for each sum: the 81 sums of a k-group (4 columns) of 32 tokens, int16.
 * Four weights of a matrix row are the index of a table row, and one vpaddw with its operand in memory does 4 weights x
 * 16 tokens. A step of triples has 6 k-groups; their tables fill the L1 cache while many rows go by. Loads are the
 * limit, so that the 6 indices of a row come with one. */
#include "ternary_groups.h"

#include <string.h>

enum {
    TILE_TOKENS = 2 * LANES,
    TILES = 2, /* that share the indices */
    SLAB_ROWS = TERNARY_SLAB_BLOCKS * TMAC_ROWS_PER_BLOCK
};

/* [rows][tokens of a tile]. Halves of a slab at a time would fit the L2 cache, but their tables would be built twice:
 * 3 to 10 % slower. */
typedef struct {
    int16_t words[SLAB_ROWS * TILE_TOKENS]; /* of a panel: 240 columns, at most 240 * 128 */
    int32_t sums[SLAB_ROWS * TILE_TOKENS];  /* of the panels before */
} tile_sums;

typedef struct {
    int16_t tables[GROUPS * GROUP_SUMS * TILE_TOKENS];
    uint8_t indices[SLAB_ROWS * INDICES];
    tile_sums tiles[TILES];
} gemm_scratch;
_Static_assert(sizeof(gemm_scratch) <= TERNARY_SCRATCH_BYTES, "kernels.c says how much scratch memory there is");

/* Up to 32 tokens, in two registers or one. */
typedef struct {
    const int8_t *x[TILE_TOKENS]; /* activations of each token; those past the last are the last's again */
    int32_t token, tokens, registers;
    tile_sums *sums;
} gemm_tile;

/* sums += words */
INLINE void widen_words(__m256i words, __m256i *sums)
{
    const __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(words));
    const __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(words, 1));
    _mm256_store_si256(sums, _mm256_add_epi32(_mm256_load_si256(sums), low));
    _mm256_store_si256(sums + 1, _mm256_add_epi32(_mm256_load_si256(sums + 1), high));
}

/* One row. index: its indices, the first in the low byte. words, sums: of its tokens. first, last: of the panel. */
INLINE void lookup_row(uint64_t index, const int16_t *tables, __m256i *words, __m256i *sums, const int first,
                       const int last, const int registers)
{
    __m256i sum[2];
    UNROLL for (int v = 0; v < registers; v++) sum[v] = first ? _mm256_setzero_si256() : _mm256_load_si256(words + v);
    UNROLL for (int g = 0; g < GROUPS; g++)
    {
        uint64_t at = (uint64_t)(uint8_t)(index >> 8 * g) * (uint64_t)registers * LANES;
        __asm__("" : "+r"(at)); /* else gcc adds the table's place before it shifts: an instruction more */
        const int16_t *entry = tables + g * GROUP_SUMS * registers * LANES + at;
        UNROLL for (int v = 0; v < registers; v++)
        {
            sum[v] = _mm256_add_epi16(sum[v], _mm256_load_si256((const __m256i *)(entry + v * LANES)));
            __asm__("" : "+x"(sum[v]));
        }
    }
    UNROLL for (int v = 0; v < registers; v++)
        if (last) widen_words(sum[v], sums + 2 * v);
        else _mm256_store_si256(words + v, sum[v]);
}

/* A step of `rows` rows, whose indices are there. */
INLINE void multiply_step(const gemm_tile *tile, gemm_scratch *scratch, int32_t rows, int32_t step, const int first,
                          const int last, const int registers)
{
    build_tables(tile->x, step, scratch->tables, registers);
    for (int32_t r = 0; r < rows; r++) {
        uint64_t index;
        memcpy(&index, scratch->indices + (int64_t)r * INDICES, sizeof index);
        lookup_row(index, scratch->tables, (__m256i *)tile->sums->words + (int64_t)r * registers,
                   (__m256i *)tile->sums->sums + (int64_t)r * registers * 2, first, last, registers);
    }
}

/* Eight rows x eight tokens: rows[t] = the rows of token t. */
INLINE void transpose_sums(const int32_t *sums, int64_t stride, __m256i rows[8])
{
    __m256i a[8], b[8];
    UNROLL for (int i = 0; i < 8; i++) a[i] = _mm256_load_si256((const __m256i *)(sums + i * stride));
    UNROLL for (int i = 0; i < 4; i++)
    {
        b[2 * i] = _mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 2; i++)
        UNROLL for (int j = 0; j < 2; j++)
        {
            a[4 * i + 2 * j] = _mm256_unpacklo_epi64(b[4 * i + j], b[4 * i + j + 2]);
            a[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(b[4 * i + j], b[4 * i + j + 2]);
        }
    UNROLL for (int i = 0; i < 4; i++)
    {
        rows[i] = _mm256_permute2x128_si256(a[i], a[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2x128_si256(a[i], a[i + 4], 0x31);
    }
}

/* The sums of a tile to y. */
static void store_tile(const gemm_tile *tile, const tmac_shape *shape, const float *scales, const tmac_lut *lut,
                       int32_t block_begin, int32_t block_end, float *y, int64_t ldy)
{
    const int32_t row = block_begin * TMAC_ROWS_PER_BLOCK, rows = (block_end - block_begin) * TMAC_ROWS_PER_BLOCK;
    const int32_t stride = tile->registers * LANES;
    for (int32_t r = 0; r < rows && row + r < shape->m; r += 8) {
        const __m256 scale = _mm256_load_ps(scales + row + r);
        for (int32_t t = 0; t < tile->tokens; t += 8) {
            __m256i values[8];
            transpose_sums(tile->sums->sums + (int64_t)r * stride + t, stride, values);
            for (int32_t i = 0; i < 8 && t + i < tile->tokens; i++) {
                const int32_t token = tile->token + t + i;
                const __m256 value = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(values[i]));
                store_rows(y + token * ldy + row + r, _mm256_mul_ps(value, _mm256_set1_ps(lut->token_scales[token])),
                           shape->m - row - r);
            }
        }
    }
}

/* All rows of a slab for some tiles. */
static void multiply_tiles(const gemm_tile *tiles, int32_t n_tiles, const uint8_t *slab, int32_t steps, int32_t blocks,
                           gemm_scratch *scratch)
{
    const int32_t rows = blocks * TMAC_ROWS_PER_BLOCK;
    for (int32_t i = 0; i < n_tiles; i++)
        memset(tiles[i].sums->sums, 0, (size_t)(rows * tiles[i].registers * LANES) * sizeof(int32_t));
    for (int32_t step = 0; step < steps; step++) {
        const int32_t in_panel = step % TRIPLE_PANEL_STEPS;
        const int first = in_panel == 0, last = in_panel == TRIPLE_PANEL_STEPS - 1 || step == steps - 1;
        for (int32_t block = 0; block < blocks; block++)
            split_step(slab + tmac_triple_offset(blocks, steps, block, step),
                       scratch->indices + (int64_t)block * TMAC_ROWS_PER_BLOCK * INDICES);
        for (int32_t i = 0; i < n_tiles; i++)
            if (tiles[i].registers == 2) multiply_step(tiles + i, scratch, rows, step, first, last, 2);
            else multiply_step(tiles + i, scratch, rows, step, first, last, 1);
    }
}

static gemm_tile make_tile(const tmac_lut *lut, int32_t token, int32_t row_bytes, tile_sums *sums)
{
    gemm_tile tile = {.token = token, .tokens = at_most(TILE_TOKENS, lut->n - token), .sums = sums};
    tile.registers = tile.tokens > LANES ? 2 : 1;
    for (int32_t t = 0; t < TILE_TOKENS; t++)
        tile.x[t] = lut->tables + (int64_t)(token + at_most(t, tile.tokens - 1)) * row_bytes;
    return tile;
}

static void multiply_many(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                          int32_t block_begin, int32_t block_end, gemm_scratch *scratch, float *y, int64_t ldy)
{
    const int32_t steps = tmac_triple_steps(shape), row_bytes = steps * TRIPLE_STEP_COLUMNS;
    for (int32_t token = 0; token < lut->n;) {
        gemm_tile tiles[TILES];
        int32_t n = 0;
        for (; n < TILES && token < lut->n; n++, token += TILE_TOKENS)
            tiles[n] = make_tile(lut, token, row_bytes, scratch->tiles + n);
        multiply_tiles(tiles, n, slab, steps, block_end - block_begin, scratch);
        for (int32_t i = 0; i < n; i++) store_tile(tiles + i, shape, scales, lut, block_begin, block_end, y, ldy);
    }
}

void tmac_ternary_gemm_avx2(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                            int32_t block_begin, int32_t block_end, void *scratch, float *y, int64_t ldy)
{
    if (lut->n > FEW_TOKENS) {
        multiply_many(shape, slab, scales, lut, block_begin, block_end, scratch, y, ldy);
        return;
    }
    for (int32_t token = 0; token < lut->n; token += FEW_AT_ONCE)
        switch (at_most(FEW_AT_ONCE, lut->n - token)) {
        case 1: few_slab(shape, slab, scales, lut, block_begin, block_end, token, y, ldy, 1); break;
        case 2: few_slab(shape, slab, scales, lut, block_begin, block_end, token, y, ldy, 2); break;
        case 3: few_slab(shape, slab, scales, lut, block_begin, block_end, token, y, ldy, 3); break;
        default: few_slab(shape, slab, scales, lut, block_begin, block_end, token, y, ldy, 4);
        }
}
