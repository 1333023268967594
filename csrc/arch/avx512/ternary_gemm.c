/* y = W x for n tokens and a ternary slab with AVX-512.
 *
 * For many tokens a table has a row of tokens for each sum: the 81 sums of a k-group (4 columns) of 32 tokens, int16.
 * Four weights of a matrix row are the index of a table row, and one vpaddw with its operand in memory does 4 weights x
 * 32 tokens. Four codes, 20 columns, are five k-groups, whose tables stay in the L1 cache while the slab's rows go by;
 * their words stay in the L2 cache. Two tiles of tokens that share indices, and halves or quarters of the slab's rows at
 * a time: within 10 % of this, mostly slower.
 *
 * For few, the tables of one token and two panels stay in the L1 cache while the slab's rows, whose codes of two panels
 * stay in the L2 cache, go by; y holds the sums between panels. Tried, and slower: two row blocks by two tokens (125 to
 * 155 GMAC/s on one core instead of 165: tables are loaded twice as often), all tokens for each chunk (115: tables come
 * from the L2 cache). */
#include "ternary_groups.h"

#include <string.h>

enum {
    FEW_STEPS = 2 * TERNARY_PANEL_STEPS,
    WORD_UNITS = 12, /* 240 columns: sums within int16, 240 * 128 */
    SLAB_ROWS = TERNARY_SLAB_BLOCKS * TMAC_ROWS_PER_BLOCK
};

/* Of one tile of tokens; rows are ordered as row_place says, in words and sums [rows][TILE_TOKENS]. */
typedef struct {
    int16_t tables[GROUPS * GROUP_SUMS * TILE_TOKENS];
    uint8_t indices[SLAB_ROWS * INDICES];
    int16_t words[SLAB_ROWS * TILE_TOKENS]; /* of up to WORD_UNITS units */
    int32_t sums[SLAB_ROWS * TILE_TOKENS];  /* of those before */
} gemm_scratch;
_Static_assert(sizeof(gemm_scratch) <= TERNARY_SCRATCH_BYTES, "kernels.c says how much scratch memory there is");

/* The slab of one product. */
typedef struct {
    const tmac_shape *shape;
    const uint8_t *codes;
    const float *scales;
    const tmac_lut *lut;
    int32_t block_begin, blocks, steps;
    float *y;
    int64_t ldy;
} slab_product;

/* sums += words */
INLINE void widen_words(__m512i words, __m512i *sums)
{
    const __m512i low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(words));
    const __m512i high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(words, 1));
    _mm512_store_si512(sums, _mm512_add_epi32(_mm512_load_si512(sums), low));
    _mm512_store_si512(sums + 1, _mm512_add_epi32(_mm512_load_si512(sums + 1), high));
}

/* One unit. first, last: of those whose sums are words. */
INLINE void lookup_rows(gemm_scratch *scratch, int32_t rows, const int first, const int last)
{
    __m512i *words = (__m512i *)scratch->words, *sums = (__m512i *)scratch->sums;
    for (int32_t r = 0; r < rows; r++) {
        uint64_t index;
        memcpy(&index, scratch->indices + (int64_t)r * INDICES, sizeof index);
        __m512i sum = first ? _mm512_setzero_si512() : _mm512_load_si512(words + r);
        UNROLL for (int g = 0; g < GROUPS; g++)
        {
            uint64_t at = (uint64_t)(uint8_t)(index >> 8 * g) * TILE_TOKENS;
            __asm__("" : "+r"(at)); /* else gcc adds the table's place before it shifts: an instruction more */
            sum = _mm512_add_epi16(sum, _mm512_load_si512(scratch->tables + g * GROUP_SUMS * TILE_TOKENS + at));
            __asm__("" : "+v"(sum));
        }
        if (last) widen_words(sum, sums + (int64_t)r * 2);
        else _mm512_store_si512(words + r, sum);
    }
}

static void multiply_unit(const slab_product *p, gemm_scratch *scratch, int32_t unit, const token_tile *tile)
{
    const int32_t units = ternary_units(p->steps), rows = p->blocks * TMAC_ROWS_PER_BLOCK, at = unit % WORD_UNITS;
    const int first = at == 0, last = at == WORD_UNITS - 1 || unit == units - 1;
    for (int32_t b = 0; b < p->blocks; b++)
        split_unit(p->codes, p->blocks, p->steps, b, unit, scratch->indices + b * TMAC_ROWS_PER_BLOCK * INDICES);
    build_tables(tile, unit * UNIT_COLUMNS, scratch->tables);
    if (first && last) lookup_rows(scratch, rows, 1, 1);
    else if (first) lookup_rows(scratch, rows, 1, 0);
    else if (last) lookup_rows(scratch, rows, 0, 1);
    else lookup_rows(scratch, rows, 0, 0);
}

/* a[i], lane t, to a[t], lane i. */
INLINE void transpose_sums(__m512i a[16])
{
    __m512i b[16];
    UNROLL for (int i = 0; i < 8; i++)
    {
        b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    UNROLL for (int i = 0; i < 4; i++) /* a[4 i + j], quarter q: lane 4 q + j of rows 4 i .. 4 i + 3 */
        UNROLL for (int j = 0; j < 2; j++)
        {
            a[4 * i + 2 * j] = _mm512_unpacklo_epi64(b[4 * i + j], b[4 * i + 2 + j]);
            a[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(b[4 * i + j], b[4 * i + 2 + j]);
        }
    UNROLL for (int j = 0; j < 4; j++)
    {
        const __m512i low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x44), high = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xee);
        const __m512i low_8 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x44);
        const __m512i high_8 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xee);
        b[j] = _mm512_shuffle_i32x4(low, low_8, 0x88);
        b[4 + j] = _mm512_shuffle_i32x4(low, low_8, 0xdd);
        b[8 + j] = _mm512_shuffle_i32x4(high, high_8, 0x88);
        b[12 + j] = _mm512_shuffle_i32x4(high, high_8, 0xdd);
    }
    UNROLL for (int i = 0; i < 16; i++) a[i] = b[i];
}

/* 16 rows from `row` of the slab on, of the tile that begins with `token`, to y. */
static void store_rows(const slab_product *p, const int32_t *sums, int32_t row, int32_t token)
{
    const int32_t at = p->block_begin * TMAC_ROWS_PER_BLOCK + row, in_block = row % TMAC_ROWS_PER_BLOCK;
    const __mmask16 inside = rows_inside(p->shape->m, at);
    const __m512 scale = _mm512_loadu_ps(p->scales + at);
    for (int32_t t = 0; t < at_most(TILE_TOKENS, p->lut->n - token); t += 16) {
        __m512i value[16];
        UNROLL for (int i = 0; i < 16; i++)
            value[i] = _mm512_load_si512(sums + (int64_t)(row - in_block + row_place(in_block + i)) * TILE_TOKENS + t);
        transpose_sums(value);
        for (int32_t i = 0; i < 16 && token + t + i < p->lut->n; i++) {
            const __m512 scaled = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(value[i]));
            _mm512_mask_storeu_ps(p->y + (token + t + i) * p->ldy + at, inside,
                                  _mm512_mul_ps(scaled, _mm512_set1_ps(p->lut->token_scales[token + t + i])));
        }
    }
}

static void multiply_many(const slab_product *p, gemm_scratch *scratch)
{
    const int32_t rows = p->blocks * TMAC_ROWS_PER_BLOCK;
    for (int32_t token = 0; token < p->lut->n; token += TILE_TOKENS) {
        const token_tile tile = make_tile(p->lut, token, activation_bytes(p->shape->k));
        memset(scratch->sums, 0, (size_t)rows * TILE_TOKENS * sizeof(int32_t));
        for (int32_t unit = 0; unit < ternary_units(p->steps); unit++) multiply_unit(p, scratch, unit, &tile);
        for (int32_t row = 0; row < rows; row += 16) store_rows(p, scratch->sums, row, token);
    }
}

static void multiply_few(const slab_product *p)
{
    const int32_t n = p->lut->n;
    ternary_panel panel = {.table_bytes = (int64_t)n * TERNARY_STEP_TABLES};
    for (int32_t begin = 0, end; begin < p->steps; begin = end) {
        end = at_most(p->steps, begin + FEW_STEPS);
        for (int32_t t = 0; t < n; t++)
            for (int32_t b = 0; b < p->blocks; b += TERNARY_CHUNK_BLOCKS) {
                const int32_t blocks = at_most(TERNARY_CHUNK_BLOCKS, p->blocks - b);
                ternary_sum sums[TERNARY_CHUNK_BLOCKS];
                ternary_clear(sums, TERNARY_CHUNK_BLOCKS);
                for (int32_t step = begin; step < end; step += panel.steps) {
                    panel.steps = at_most(TERNARY_PANEL_STEPS, end - step);
                    panel.codes = p->codes + tmac_ternary_offset(p->blocks, p->steps, b, step, 0);
                    panel.tables = p->lut->tables + ((int64_t)step * n + t) * TERNARY_STEP_TABLES;
                    ternary_lookup(&panel, sums, blocks);
                }
                for (int32_t i = 0; i < blocks; i++)
                    ternary_store(p->shape, sums + i, p->scales, p->lut->token_scales[t], p->block_begin + b + i,
                                  begin == 0, end == p->steps, p->y + t * p->ldy);
            }
    }
}

void tmac_ternary_gemm_avx512(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                              int32_t block_begin, int32_t block_end, void *scratch, float *y, int64_t ldy)
{
    const slab_product p = {.shape = shape, .codes = slab, .scales = scales, .lut = lut, .block_begin = block_begin,
                            .blocks = block_end - block_begin, .steps = tmac_ternary_steps(shape), .y = y, .ldy = ldy};
    if (lut->n == 1) tmac_ternary_gemv_avx512(shape, slab, scales, lut, block_begin, block_end, y);
    else if (lut->n > FEW_TOKENS) multiply_many(&p, scratch);
    else multiply_few(&p);
}
