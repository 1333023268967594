/* What the ternary AVX2 kernels share: triples (layout.h), and lookups for a few tokens.
 *
 * A table of a triple holds the sums of v = 0 .. 13, v = t0 + 3 t1 + 9 t2: sum = 31 hi + lo with |lo| <= 15, so that a
 * sign can be applied to both bytes and eight triples add up within int8 (8 * 15). vpmaddubsw joins them in int16,
 * where a panel of 240 columns stays within 240 * 128 = 30720. */
#ifndef TMAC_ARCH_AVX2_TERNARY_H
#define TMAC_ARCH_AVX2_TERNARY_H
#include "avx2.h"

enum {
    TRIPLE_SPLIT = 31,
    TRIPLE_TABLE_BYTES = 32, /* lo[16], hi[16] */
    TRIPLE_STEP_TABLES = TRIPLES * TRIPLE_TABLE_BYTES,
    HALF_ROWS = 32, /* of a row block: one register of bytes */
    HALVES = TMAC_ROWS_PER_BLOCK / HALF_ROWS,
    FEW_TOKENS = 12, /* up to which tokens have tables of triples; above it lut->tables has their activations */
    FEW_AT_ONCE = 4,
    PREFETCH_BYTES = 2048,
    TERNARY_SCRATCH_BYTES = 1088 << 10
};

INLINE int32_t at_most(int32_t limit, int32_t n) { return n < limit ? n : limit; }

/* |v| of triple g. nibbles: vector g / 2 of a step. */
INLINE __m256i magnitudes(__m256i nibbles, const int g) { return g % 2 ? high_index(nibbles) : low_index(nibbles); }

/* Bytes that are negative where triple g is, and never 0. signs: vector 4 of a step moved up by g bits. */
INLINE __m256i nonzero(__m256i signs) { return _mm256_or_si256(signs, _mm256_set1_epi8(1)); }

INLINE __m256i both_lanes(const int8_t *table)
{
    return _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)table));
}

/* sums[v] = t0 x0 + t1 x1 + t2 x2 for v = 0 .. 13. */
INLINE void build_triple(const int8_t *x, int8_t *table)
{
    const __m256i t0 = _mm256_setr_epi16(0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, 0, 0);
    const __m256i t1 = _mm256_setr_epi16(0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 0, 0);
    const __m256i t2 = _mm256_setr_epi16(0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0);
    __m256i sums = _mm256_sign_epi16(_mm256_set1_epi16(x[0]), t0);
    sums = _mm256_add_epi16(sums, _mm256_sign_epi16(_mm256_set1_epi16(x[1]), t1));
    sums = _mm256_add_epi16(sums, _mm256_sign_epi16(_mm256_set1_epi16(x[2]), t2));
    /* hi = round(sum / 31): |sum| <= 384 puts the product off by less than 0.001; the nearest tie is 0.016 away */
    const __m256i hi = _mm256_mulhrs_epi16(sums, _mm256_set1_epi16(32768 / TRIPLE_SPLIT));
    const __m256i lo = _mm256_sub_epi16(sums, _mm256_mullo_epi16(hi, _mm256_set1_epi16(TRIPLE_SPLIT)));
    _mm256_store_si256((__m256i *)table, _mm256_permute4x64_epi64(_mm256_packs_epi16(lo, hi), 0xd8));
}

/* Where the operands of a panel of one row block and some tokens lie. */
typedef struct {
    const uint8_t *codes;
    const int8_t *tables; /* of the panel's first step and the first token */
    int64_t table_bytes;  /* from step to step */
    int32_t steps;        /* at most TRIPLE_PANEL_STEPS */
} few_panel;

/* One step for `halves` halves from `half` on: words[token][half] += rows 0-7 and 16-23, rows 8-15 and 24-31 of it. */
INLINE void few_rows(const uint8_t *codes, const int8_t *tables, __m256i words[][HALVES][2], const int half,
                     const int halves, const int tokens)
{
    const __m256i weights = _mm256_set1_epi16(TRIPLE_SPLIT << 8 | 1), *at = (const __m256i *)codes + half;
    __m256i lo[FEW_AT_ONCE][HALVES], hi[FEW_AT_ONCE][HALVES], signs[HALVES];
    UNROLL for (int h = 0; h < halves; h++)
    {
        signs[h] = _mm256_load_si256(at + TRIPLES / 2 * HALVES + h);
        UNROLL for (int t = 0; t < tokens; t++) lo[t][h] = hi[t][h] = _mm256_setzero_si256();
    }
    UNROLL for (int g = 0; g < TRIPLES; g++)
    {
        __m256i index[HALVES], sign[HALVES];
        UNROLL for (int h = 0; h < halves; h++)
        {
            index[h] = magnitudes(_mm256_load_si256(at + g / 2 * HALVES + h), g);
            sign[h] = nonzero(signs[h]);
            signs[h] = _mm256_add_epi8(signs[h], signs[h]);
        }
        UNROLL for (int t = 0; t < tokens; t++)
        {
            const int8_t *table = tables + t * TRIPLE_STEP_TABLES + g * TRIPLE_TABLE_BYTES;
            const __m256i table_lo = both_lanes(table), table_hi = both_lanes(table + 16);
            UNROLL for (int h = 0; h < halves; h++)
            {
                const __m256i low = _mm256_shuffle_epi8(table_lo, index[h]);
                const __m256i high = _mm256_shuffle_epi8(table_hi, index[h]);
                lo[t][h] = _mm256_add_epi8(lo[t][h], _mm256_sign_epi8(low, sign[h]));
                hi[t][h] = _mm256_add_epi8(hi[t][h], _mm256_sign_epi8(high, sign[h]));
                __asm__("" : "+x"(lo[t][h]), "+x"(hi[t][h])); /* else gcc adds in trees, whose leaves do not fit */
            }
        }
    }
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int h = 0; h < halves; h++)
        {
            const __m256i first = _mm256_unpacklo_epi8(lo[t][h], hi[t][h]);
            const __m256i second = _mm256_unpackhi_epi8(lo[t][h], hi[t][h]);
            __m256i *sum = words[t][half + h];
            sum[0] = _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(weights, first));
            sum[1] = _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(weights, second));
        }
}

/* One token: both halves share a load of each table. Several: their sums of one half fill the registers. */
INLINE void few_step(const uint8_t *codes, const int8_t *tables, __m256i words[][HALVES][2], const int tokens)
{
    UNROLL for (int line = 0; line < TRIPLE_STEP_BYTES; line += 64)
        _mm_prefetch((const char *)codes + line + PREFETCH_BYTES, _MM_HINT_T0);
    if (tokens == 1) {
        few_rows(codes, tables, words, 0, HALVES, tokens);
        return;
    }
    few_rows(codes, tables, words, 0, 1, tokens);
    __asm__ volatile("" ::: "memory"); /* else gcc keeps the first half's tables, on the stack */
    few_rows(codes, tables, words, 1, 1, tokens);
}

/* The rows before m of the eight from y on (masked loads and stores are slow, and needed once per matrix). */
INLINE __m256 load_rows(const float *y, int32_t left)
{
    return left >= OCTET_ROWS ? _mm256_loadu_ps(y) : _mm256_maskload_ps(y, first_lanes(left));
}
INLINE void store_rows(float *y, __m256 value, int32_t left)
{
    if (left >= OCTET_ROWS) _mm256_storeu_ps(y, value);
    else _mm256_maskstore_ps(y, first_lanes(left), value);
}

/* 8 rows from `row` on: on top of what y holds unless `first`, scaled where `last`. */
INLINE void add_rows(const tmac_shape *shape, __m128i words, const float *scales, float token_scale, int32_t row,
                     const int first, const int last, float *y)
{
    __m256 value = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(words));
    if (!first) value = _mm256_add_ps(value, load_rows(y + row, shape->m - row));
    if (last) value = _mm256_mul_ps(_mm256_mul_ps(_mm256_load_ps(scales + row), value), _mm256_set1_ps(token_scale));
    store_rows(y + row, value, shape->m - row);
}

/* A panel of one row block for tokens token .. token + tokens - 1. first, last: whether it is the matrix's. */
INLINE void few_block(const few_panel *p, const tmac_shape *shape, const float *scales, const tmac_lut *lut,
                      int32_t block, int32_t token, const int first, const int last, float *y, int64_t ldy,
                      const int tokens)
{
    __m256i words[FEW_AT_ONCE][HALVES][2];
    UNROLL for (int t = 0; t < tokens; t++)
        UNROLL for (int i = 0; i < HALVES * 2; i++) words[t][i / 2][i % 2] = _mm256_setzero_si256();
    for (int32_t s = 0; s < p->steps; s++)
        few_step(p->codes + s * TRIPLE_STEP_BYTES, p->tables + s * p->table_bytes, words, tokens);
    for (int t = 0; t < tokens; t++)
        UNROLL for (int i = 0; i < HALVES * 2; i++) /* rows 8 i .. 8 i + 7 of the half: lane i / 2 of word i % 2 */
            UNROLL for (int half = 0; half < HALVES; half++)
            {
                const __m256i pair = words[t][half][i % 2];
                add_rows(shape, i / 2 ? _mm256_extracti128_si256(pair, 1) : _mm256_castsi256_si128(pair), scales,
                         lut->token_scales[token + t],
                         block * TMAC_ROWS_PER_BLOCK + half * HALF_ROWS + i * OCTET_ROWS, first, last,
                         y + (token + t) * ldy);
            }
}

/* The tables of a panel for the only token. x: its activations. The codes that come next are asked for meanwhile. */
INLINE void build_panel(const int8_t *x, int32_t steps, const uint8_t *codes, int8_t *tables)
{
    for (int32_t g = 0; g < steps * TRIPLES; g++) {
        _mm_prefetch((const char *)codes + g * 64, _MM_HINT_T0);
        build_triple(x + g * TRIPLE_COLUMNS, tables + g * TRIPLE_TABLE_BYTES);
    }
}

/* A slab for tokens token .. token + tokens - 1: panel by panel, so that its tables stay in the L1 cache; y holds the
 * sums between panels, exact in float (|sum| <= 2^23). With one token they are built as they are wanted: products wait
 * for memory, so that this costs nothing. */
INLINE void few_slab(const tmac_shape *shape, const uint8_t *slab, const float *scales, const tmac_lut *lut,
                     int32_t block_begin, int32_t block_end, int32_t token, float *y, int64_t ldy, const int tokens)
{
    const int32_t steps = tmac_triple_steps(shape);
    const int alone = tokens == 1 && lut->n == 1;
    _Alignas(32) int8_t tables[TRIPLE_PANEL_STEPS * TRIPLE_STEP_TABLES];
    few_panel p = {.codes = slab, .table_bytes = (int64_t)lut->n * TRIPLE_STEP_TABLES};
    for (int32_t step = 0; step < steps; step += p.steps) {
        p.steps = at_most(TRIPLE_PANEL_STEPS, steps - step);
        p.tables = alone ? tables : lut->tables + step * p.table_bytes + token * TRIPLE_STEP_TABLES;
        if (alone) build_panel(lut->tables + step * TRIPLE_STEP_COLUMNS, p.steps, p.codes, tables);
        for (int32_t block = block_begin; block < block_end; block++, p.codes += p.steps * TRIPLE_STEP_BYTES)
            few_block(&p, shape, scales, lut, block, token, step == 0, step + p.steps == steps, y, ldy, tokens);
    }
}
#endif
