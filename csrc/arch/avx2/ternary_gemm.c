/* y = W x for n tokens and a ternary slab with AVX2.
 *
 * For many tokens a table has a row of tokens for each sum: the 81 sums of a k-group (4 columns) of 32 tokens, int16.
 * Four weights of a row are the index of a table row, and one vpaddw with its operand in memory does 4 weights x 16
 * tokens. A step of triples has 6 k-groups, whose tables fill the L1 cache while all rows of the slab go by. */
#include "ternary.h"

#include <string.h>

enum {
    GROUP_COLUMNS = 4,
    GROUPS = TRIPLE_STEP_COLUMNS / GROUP_COLUMNS,
    GROUP_SUMS = 81,
    LANES = 16, /* tokens of a register */
    TILE_TOKENS = 2 * LANES,
    SLAB_ROWS = TERNARY_SLAB_BLOCKS * TMAC_ROWS_PER_BLOCK
};

/* One tile of tokens; where it has 16 of them, rows are half as long. */
typedef struct {
    int16_t tables[GROUPS * GROUP_SUMS * TILE_TOKENS];
    int16_t words[SLAB_ROWS * TILE_TOKENS]; /* sums of a panel: 240 columns, at most 240 * 128 */
    int32_t sums[SLAB_ROWS * TILE_TOKENS];  /* of the panels before */
} gemm_scratch;
_Static_assert(sizeof(gemm_scratch) <= TERNARY_SCRATCH_BYTES, "kernels.c says how much scratch memory there is");

/* What a tile works on. */
typedef struct {
    const tmac_shape *shape;
    const uint8_t *slab;
    const int8_t *x[TILE_TOKENS]; /* activations of each token; those past the last are the last's again */
    int32_t blocks, steps;
    gemm_scratch *scratch;
} gemm_tile;

/* columns[c] = column c of the step for 16 tokens. */
INLINE void transpose_columns(const int8_t *const *x, int32_t c, __m128i columns[8])
{
    __m128i a[8], b[8];
    UNROLL for (int i = 0; i < 8; i++)
        a[i] = _mm_unpacklo_epi8(_mm_loadl_epi64((const void *)(x[i] + c)), _mm_loadl_epi64((const void *)(x[i + 8] + c)));
    UNROLL for (int i = 0; i < 4; i++)
    {
        b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 4]);
    }
    UNROLL for (int i = 0; i < 2; i++)
        UNROLL for (int j = 0; j < 2; j++)
        {
            a[4 * i + 2 * j] = _mm_unpacklo_epi8(b[2 * i + j], b[2 * i + j + 4]);
            a[4 * i + 2 * j + 1] = _mm_unpackhi_epi8(b[2 * i + j], b[2 * i + j + 4]);
        }
    UNROLL for (int i = 0; i < 4; i++)
    {
        columns[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 4]);
        columns[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 4]);
    }
}

/* Row i of the table: sum over j of (digit j of i in base 3, less 1) * x[j]; rows `stride` registers apart. */
INLINE void build_sums(const __m256i x[GROUP_COLUMNS], __m256i *table, const int stride)
{
    __m256i third = _mm256_sub_epi16(_mm256_setzero_si256(), x[3]);
    for (int i = 0; i < 3; i++, third = _mm256_add_epi16(third, x[3])) {
        __m256i second = _mm256_sub_epi16(third, x[2]);
        for (int j = 0; j < 3; j++, second = _mm256_add_epi16(second, x[2])) {
            __m256i first = _mm256_sub_epi16(second, x[1]);
            UNROLL for (int l = 0; l < 3; l++, first = _mm256_add_epi16(first, x[1]), table += 3 * stride)
            {
                _mm256_store_si256(table, _mm256_sub_epi16(first, x[0]));
                _mm256_store_si256(table + stride, first);
                _mm256_store_si256(table + 2 * stride, _mm256_add_epi16(first, x[0]));
            }
        }
    }
}

INLINE void build_tables(const gemm_tile *tile, int32_t step, const int registers)
{
    __m256i *table = (__m256i *)tile->scratch->tables;
    for (int32_t c = 0; c < TRIPLE_STEP_COLUMNS; c += 8)
        for (int v = 0; v < registers; v++) {
            __m128i columns[8];
            transpose_columns(tile->x + v * LANES, step * TRIPLE_STEP_COLUMNS + c, columns);
            for (int g = 0; g < 2; g++) {
                __m256i x[GROUP_COLUMNS];
                UNROLL for (int j = 0; j < GROUP_COLUMNS; j++) x[j] = _mm256_cvtepi8_epi16(columns[g * GROUP_COLUMNS + j]);
                build_sums(x, table + (c / GROUP_COLUMNS + g) * GROUP_SUMS * registers + v, registers);
            }
        }
}

/* Signed digits of a triple: trits[|v|] with v's sign. */
INLINE __m256i part_of(__m128i trits, __m256i magnitude, __m256i sign)
{
    return _mm256_sign_epi8(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(trits), magnitude), sign);
}

/* Triples a, b, c, d of 12 columns to three k-groups a0 a1 a2 b0, b1 b2 c0 c1, c2 d0 d1 d2. */
INLINE void regroup(const __m256i magnitude[4], const __m256i sign[4], uint8_t *out)
{
    const __m128i low_27 = _mm_setr_epi8(0, 27, -27, 0, 27, -27, 0, 27, -27, 0, 27, -27, 0, 27, 0, 0);
    const __m128i rest = _mm_setr_epi8(0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 0, 0);
    const __m128i low_two_9 = _mm_setr_epi8(0, 9, 18, 27, 36, -36, -27, -18, -9, 0, 9, 18, 27, 36, 0, 0);
    const __m128i high = _mm_setr_epi8(0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0);
    const __m128i times_3 = _mm_setr_epi8(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 0, 0);
    const __m256i middle = _mm256_set1_epi8(GROUP_SUMS / 2);
    const __m256i first = _mm256_add_epi8(_mm256_sign_epi8(magnitude[0], sign[0]), part_of(low_27, magnitude[1], sign[1]));
    const __m256i second = _mm256_add_epi8(part_of(rest, magnitude[1], sign[1]), part_of(low_two_9, magnitude[2], sign[2]));
    const __m256i third = _mm256_add_epi8(part_of(high, magnitude[2], sign[2]), part_of(times_3, magnitude[3], sign[3]));
    _mm256_store_si256((__m256i *)out, _mm256_add_epi8(first, middle));
    _mm256_store_si256((__m256i *)(out + TMAC_ROWS_PER_BLOCK), _mm256_add_epi8(second, middle));
    _mm256_store_si256((__m256i *)(out + 2 * TMAC_ROWS_PER_BLOCK), _mm256_add_epi8(third, middle));
}

/* Indices of table rows, [GROUPS][64 rows]. */
INLINE void split_step(const uint8_t *codes, uint8_t *indices)
{
    UNROLL for (int half = 0; half < HALVES; half++)
    {
        const __m256i *at = (const __m256i *)codes + half;
        __m256i signs = _mm256_load_si256(at + TRIPLES / 2 * HALVES);
        UNROLL for (int part = 0; part < 2; part++)
        {
            __m256i magnitude[4], sign[4];
            UNROLL for (int i = 0; i < 4; i++, signs = _mm256_add_epi8(signs, signs))
            {
                magnitude[i] = magnitudes(_mm256_load_si256(at + (part * 4 + i) / 2 * HALVES), i);
                sign[i] = nonzero(signs);
            }
            regroup(magnitude, sign, indices + part * 3 * TMAC_ROWS_PER_BLOCK + half * HALF_ROWS);
        }
    }
}

/* Two rows. indices: of the first, GROUPS times 64 bytes apart. words, sums: their registers. */
INLINE void lookup_rows(const uint8_t *indices, const int16_t *tables, __m256i *words, int32_t *sums, const int first,
                        const int last, const int registers)
{
    __m256i sum[2][2];
    UNROLL for (int i = 0; i < 2 * registers; i++)
        sum[i / registers][i % registers] = first ? _mm256_setzero_si256() : _mm256_load_si256(words + i);
    UNROLL for (int g = 0; g < GROUPS; g++)
    {
        uint16_t pair; /* one load for both: loads are what this is bound by */
        memcpy(&pair, indices + g * TMAC_ROWS_PER_BLOCK, sizeof pair);
        UNROLL for (int row = 0; row < 2; row++)
        {
            uint64_t at = (uint64_t)(row ? pair >> 8 : pair & 0xff) * (uint64_t)registers * LANES;
            __asm__("" : "+r"(at)); /* else gcc adds the table's place before it shifts: an instruction more */
            const int16_t *entry = tables + g * GROUP_SUMS * registers * LANES + at;
            UNROLL for (int v = 0; v < registers; v++)
            {
                sum[row][v] = _mm256_add_epi16(sum[row][v], _mm256_load_si256((const __m256i *)(entry + v * LANES)));
                __asm__("" : "+x"(sum[row][v]));
            }
        }
    }
    UNROLL for (int i = 0; i < 2 * registers; i++)
    {
        if (!last) {
            _mm256_store_si256(words + i, sum[i / registers][i % registers]);
            continue;
        }
        __m256i *to = (__m256i *)sums + 2 * i;
        const __m256i word = sum[i / registers][i % registers];
        const __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(word));
        const __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(word, 1));
        _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), low));
        _mm256_store_si256(to + 1, _mm256_add_epi32(_mm256_load_si256(to + 1), high));
    }
}

/* One step for all rows. first, last: of the panel. */
INLINE void multiply_step(const gemm_tile *tile, int32_t step, const int first, const int last, const int registers)
{
    const int row_words = registers * LANES;
    build_tables(tile, step, registers);
    for (int32_t block = 0; block < tile->blocks; block++) {
        const uint8_t *codes = tile->slab + tmac_triple_offset(tile->blocks, tile->steps, block, step);
        const int64_t row = (int64_t)block * TMAC_ROWS_PER_BLOCK;
        _Alignas(32) uint8_t indices[GROUPS * TMAC_ROWS_PER_BLOCK];
        split_step(codes, indices);
        for (int r = 0; r < TMAC_ROWS_PER_BLOCK; r += 2)
            lookup_rows(indices + r, tile->scratch->tables, (__m256i *)(tile->scratch->words + (row + r) * row_words),
                        tile->scratch->sums + (row + r) * row_words, first, last, registers);
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

static void store_tile(const gemm_tile *tile, const float *scales, const tmac_lut *lut, int32_t block_begin,
                       int32_t token, int32_t row_tokens, float *y, int64_t ldy)
{
    const int32_t row_begin = block_begin * TMAC_ROWS_PER_BLOCK, tokens = at_most(row_tokens, lut->n - token);
    for (int32_t r = 0; r < tile->blocks * TMAC_ROWS_PER_BLOCK && row_begin + r < tile->shape->m; r += 8) {
        const __m256i inside = first_lanes(tile->shape->m - row_begin - r);
        const __m256 scale = _mm256_load_ps(scales + row_begin + r);
        for (int32_t t = 0; t < tokens; t += 8) {
            __m256i rows[8];
            transpose_sums(tile->scratch->sums + (int64_t)r * row_tokens + t, row_tokens, rows);
            for (int32_t i = 0; i < 8 && t + i < tokens; i++) {
                const __m256 token_scale = _mm256_set1_ps(lut->token_scales[token + t + i]);
                const __m256 value = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(rows[i]));
                _mm256_maskstore_ps(y + (token + t + i) * ldy + row_begin + r, inside, _mm256_mul_ps(value, token_scale));
            }
        }
    }
}

INLINE void multiply_tile(const gemm_tile *tile, const int registers)
{
    memset(tile->scratch->sums, 0, (size_t)tile->blocks * TMAC_ROWS_PER_BLOCK * (size_t)registers * LANES * sizeof(int32_t));
    for (int32_t step = 0; step < tile->steps; step++) {
        const int first = step % TRIPLE_PANEL_STEPS == 0;
        const int last = step % TRIPLE_PANEL_STEPS == TRIPLE_PANEL_STEPS - 1 || step == tile->steps - 1;
        multiply_step(tile, step, first, last, registers);
    }
}

static void multiply_many(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                          int32_t block_begin, int32_t block_end, gemm_scratch *scratch, float *y, int64_t ldy)
{
    gemm_tile tile = {shape, slab, {NULL}, block_end - block_begin, tmac_triple_steps(shape), scratch};
    for (int32_t token = 0; token < lut->n; token += TILE_TOKENS) {
        const int32_t left = lut->n - token;
        for (int32_t i = 0; i < TILE_TOKENS; i++)
            tile.x[i] = lut->tables + (int64_t)(token + at_most(i, left - 1)) * tile.steps * TRIPLE_STEP_COLUMNS;
        if (left > LANES) multiply_tile(&tile, 2);
        else multiply_tile(&tile, 1);
        store_tile(&tile, scales, lut, block_begin, token, left > LANES ? TILE_TOKENS : LANES, y, ldy);
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
