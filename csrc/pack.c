/* Codes and scales to tiles and back, in the file's layout (layout.h). Knows no instruction set. */
#include <stdatomic.h>
#include <string.h>

#include "half.h"
#include "matrix.h"
#include "threadpool.h"

enum { ROWS = TMAC_ROWS_PER_BLOCK, STEP_COLUMNS = TMAC_COLUMNS_PER_STEP };

/* A view of one matrix's layout, computed once. */
typedef struct {
    const tmac_shape *shape;
    int64_t block_bytes, segment_bytes, step_bytes, steps_bytes; /* steps_bytes: all steps of a segment */
    int32_t segment_columns, n_groups; /* n_groups: scales per row in the caller's arrays */
    int32_t step_columns;
} layout;

static layout layout_of(const tmac_shape *s)
{
    layout l = {.shape = s, .block_bytes = tmac_block_bytes(s), .segment_bytes = tmac_segment_bytes(s)};
    l.step_bytes = (int64_t)s->bits * VECTOR_BYTES;
    l.steps_bytes = l.step_bytes * tmac_steps_per_segment(s);
    l.segment_columns = tmac_segment_columns(s);
    l.step_columns = s->encoding == TMAC_TERNARY ? TERNARY_COLUMNS : STEP_COLUMNS;
    l.n_groups = s->group_size ? (s->k + s->group_size - 1) / s->group_size : 1;
    return l;
}

/* Offset of the step that starts at column c in a block, at row r's first byte of vector 0. */
static int64_t step_offset(const layout *l, int32_t r, int32_t c)
{
    if (l->shape->encoding == TMAC_TERNARY) return c / TERNARY_COLUMNS * TERNARY_STEP_BYTES + r;
    const int32_t segment = c / l->segment_columns, step = c % l->segment_columns / STEP_COLUMNS;
    return segment * l->segment_bytes + step * l->step_bytes + r / TMAC_ROWS_PER_TILE * TILE_BYTES +
           r % TMAC_ROWS_PER_TILE * 4;
}

/* Where plane p of quad q lies: vector, and whether in the high nibble (see layout.h). */
static int32_t plane_vector(int32_t bits, int32_t p, int32_t q) { return p == bits - 1 && bits % 2 ? p : p / 2 * 2 + q; }

static int plane_is_high(int32_t bits, int32_t p, int32_t q) { return p == bits - 1 && bits % 2 ? q : p & 1; }

static uint64_t load_8(const uint8_t *bytes)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) v = v << 8 | bytes[i];
    return v;
}

/* Thirty codes of one row, five to a byte: sign and magnitude of the sum of 3^j * (code - 1). */
static void pack_trits(const uint8_t *codes, uint8_t *tile)
{
    for (int32_t g = 0; g < TERNARY_GROUPS; g++, codes += TRITS) {
        const int32_t v = codes[0] + 3 * (codes[1] + 3 * (codes[2] + 3 * (codes[3] + 3 * codes[4]))) - MAX_TRITS;
        tile[g * ROWS] = (uint8_t)(v < 0 ? 0x80 | -v : v);
    }
}

static void unpack_trits(const uint8_t *tile, uint8_t *codes)
{
    for (int32_t g = 0; g < TERNARY_GROUPS; g++) {
        const int32_t byte = tile[g * ROWS], magnitude = (byte & 0x7f) > MAX_TRITS ? 0 : byte & 0x7f;
        /* In base 3 its digits are the codes. */
        uint32_t rest = (uint32_t)(MAX_TRITS + (byte & 0x80 ? -magnitude : magnitude));
        for (int32_t j = 0; j < TRITS; j++, rest /= 3) *codes++ = (uint8_t)(rest % 3);
    }
}

/* Two bytes of a row from eight bytes of which each has one bit for either nibble, at bits 0 and 4. In each half the bit
 * of byte j moves from 8 j to j; what does not belong there ends below bit 0 or above bit 7. */
static uint64_t gather_8(uint64_t bits)
{
    bits |= bits >> 7;
    bits |= bits >> 14;
    return (bits & 0xff) | (bits >> 24 & 0xff00);
}

/* Bits p of 16 codes in the low nibbles, bits p + by of the same or others in the high nibbles: four bytes of a row. */
static void pack_quad(const uint64_t low[2], const uint64_t high[2], int32_t p, int32_t by, uint8_t *out)
{
    const uint64_t each = 0x0101010101010101u;
    uint64_t halves[2];
    for (int i = 0; i < 2; i++) halves[i] = gather_8((low[i] >> p & each) | (high[i] >> (p + by) & each) << 4);
    const uint32_t four = (uint32_t)(halves[0] | halves[1] << 16);
    for (int i = 0; i < 4; i++) out[i] = (uint8_t)(four >> 8 * i);
}

/* The codes of one row and step; `tile` points at the row's first byte of vector 0. */
static void pack_planes(int32_t bits, const uint8_t *codes, uint8_t *tile)
{
    uint64_t eights[2][2]; /* quad, half */
    for (int i = 0; i < 4; i++) eights[i / 2][i % 2] = load_8(codes + i * 8);
    for (int32_t p = 0; p + 1 < bits; p += 2)
        for (int32_t q = 0; q < 2; q++) pack_quad(eights[q], eights[q], p, 1, tile + (p + q) * VECTOR_BYTES);
    if (bits % 2) pack_quad(eights[0], eights[1], bits - 1, 0, tile + (bits - 1) * VECTOR_BYTES);
}

static void unpack_planes(int32_t bits, const uint8_t *tile, uint8_t *codes)
{
    memset(codes, 0, STEP_COLUMNS);
    for (int32_t p = 0; p < bits; p++)
        for (int32_t q = 0; q < 2; q++) {
            const uint8_t *in = tile + plane_vector(bits, p, q) * VECTOR_BYTES;
            const int shift = plane_is_high(bits, p, q) ? 4 : 0;
            for (int32_t g = 0; g < 4; g++)
                for (int32_t j = 0; j < 4; j++)
                    codes[q * QUAD_COLUMNS + g * 4 + j] |= (uint8_t)((in[g] >> (shift + j) & 1) << p);
        }
}

static void pack_step(const tmac_shape *shape, const uint8_t *codes, uint8_t *tile)
{
    if (shape->encoding == TMAC_TERNARY) pack_trits(codes, tile);
    else pack_planes(shape->bits, codes, tile);
}

static void unpack_step(const tmac_shape *shape, const uint8_t *tile, uint8_t *codes)
{
    if (shape->encoding == TMAC_TERNARY) unpack_trits(tile, codes);
    else unpack_planes(shape->bits, tile, codes);
}

typedef struct {
    layout layout;
    int32_t n_rows; /* of the arrays below */
    const uint8_t *codes;
    const void *scales, *zeros;
    uint8_t *tiles;
    _Atomic int status;
} pack_job;

/* Address of the scale (which = 0) or zero point (1) of row r of a block, group g. */
static int64_t tail_offset(const layout *l, int32_t r, int32_t g, int which)
{
    if (l->shape->group_size == 0) return l->block_bytes - (1 + l->shape->has_zeros - which) * ROWS * 4 + r * 4;
    return g * l->segment_bytes + l->steps_bytes + (which * ROWS + r) * 2;
}

/* The caller's value of a row and group, float32 or float16 bits. */
static size_t value_bytes(const layout *l) { return l->shape->group_size ? 2 : 4; }

static void pack_tail(const layout *l, const void *values, int32_t row, int which, uint8_t *block)
{
    const char *in = (const char *)values + (size_t)row * (size_t)l->n_groups * value_bytes(l);
    for (int32_t g = 0; g < l->n_groups; g++, in += value_bytes(l))
        memcpy(block + tail_offset(l, row % ROWS, g, which), in, value_bytes(l));
}

static void unpack_tail(const layout *l, const uint8_t *block, int32_t row, int which, void *values)
{
    char *out = (char *)values + (size_t)row * (size_t)l->n_groups * value_bytes(l);
    for (int32_t g = 0; g < l->n_groups; g++, out += value_bytes(l))
        memcpy(out, block + tail_offset(l, row % ROWS, g, which), value_bytes(l));
}

static float tail_value(const layout *l, const uint8_t *block, int32_t r, int32_t g, int which)
{
    const uint8_t *in = block + tail_offset(l, r, g, which);
    float value;
    uint16_t half;
    if (l->shape->group_size == 0) return memcpy(&value, in, 4), value;
    return memcpy(&half, in, 2), tmac_float_of_half(half);
}

static int codes_fit(const tmac_shape *shape, const uint8_t *codes)
{
    uint8_t any = 0, both = 0; /* both: a ternary code 3 has both bits */
    for (int32_t c = 0; c < shape->k; c++) {
        any |= codes[c];
        both |= codes[c] & codes[c] >> 1;
    }
    return any >> shape->bits == 0 && (shape->encoding != TMAC_TERNARY || both == 0);
}

static void pack_row(pack_job *job, int32_t row, uint8_t *block)
{
    const layout *l = &job->layout;
    const tmac_shape *shape = l->shape;
    const uint8_t *codes = job->codes + (int64_t)row * shape->k;
    if (!codes_fit(shape, codes)) {
        job->status = TMAC_ERR_CODE;
        return;
    }
    for (int32_t c = 0; c < shape->k; c += l->step_columns) {
        const int32_t n = shape->k - c;
        uint8_t tail[STEP_COLUMNS];
        memset(tail, shape->encoding == TMAC_TERNARY, sizeof tail);
        if (n < l->step_columns) memcpy(tail, codes + c, (size_t)n);
        pack_step(shape, n < l->step_columns ? tail : codes + c, block + step_offset(l, row % ROWS, c));
    }
    pack_tail(l, job->scales, row, 0, block);
    if (shape->has_zeros) pack_tail(l, job->zeros, row, 1, block);
}

static void pack_blocks(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    pack_job *job = context;
    for (int32_t b = begin; b < end; b++) {
        uint8_t *block = job->tiles + b * job->layout.block_bytes;
        memset(block, 0, (size_t)job->layout.block_bytes);
        for (int32_t r = 0; r < ROWS && b * ROWS + r < job->n_rows; r++) pack_row(job, b * ROWS + r, block);
    }
}

int tmac_pack(const tmac_shape *shape, int32_t row_begin, int32_t row_end, const uint8_t *codes, const void *scales,
              const void *zeros, uint8_t *tiles)
{
    if (!tmac_shape_valid(shape) || !codes || !scales || !tiles || (shape->has_zeros && !zeros))
        return TMAC_ERR_ARGUMENT;
    if (row_begin < 0 || row_begin % ROWS || row_end <= row_begin || row_end > shape->m ||
        (row_end % ROWS && row_end != shape->m))
        return TMAC_ERR_ARGUMENT;
    pack_job job = {layout_of(shape), row_end - row_begin, codes, scales, zeros, tiles, TMAC_OK};
    tmac_parallel_for((job.n_rows + ROWS - 1) / ROWS, 1, pack_blocks, &job);
    return job.status;
}

typedef struct {
    layout layout;
    const uint8_t *tiles;
    uint8_t *codes;
    void *scales, *zeros;
    const int32_t *rows;
    float *weights;
} unpack_job;

static void unpack_rows(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    const unpack_job *job = context;
    const layout *l = &job->layout;
    const int32_t k = l->shape->k;
    for (int32_t row = begin; row < end; row++) {
        const uint8_t *block = job->tiles + row / ROWS * l->block_bytes;
        for (int32_t c = 0; c < k; c += l->step_columns) {
            const int32_t n = k - c < l->step_columns ? k - c : l->step_columns;
            uint8_t codes[STEP_COLUMNS];
            unpack_step(l->shape, block + step_offset(l, row % ROWS, c), codes);
            memcpy(job->codes + (int64_t)row * k + c, codes, (size_t)n);
        }
        unpack_tail(l, block, row, 0, job->scales);
        if (l->shape->has_zeros) unpack_tail(l, block, row, 1, job->zeros);
    }
}

int tmac_unpack(const tmac_shape *shape, const uint8_t *tiles, uint8_t *codes, void *scales, void *zeros)
{
    if (!tmac_shape_valid(shape) || !tiles || !codes || !scales || (shape->has_zeros && !zeros))
        return TMAC_ERR_ARGUMENT;
    unpack_job job = {.layout = layout_of(shape), .tiles = tiles, .codes = codes, .scales = scales, .zeros = zeros};
    tmac_parallel_for(shape->m, ROWS, unpack_rows, &job);
    return TMAC_OK;
}

static void dequantize_rows(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    const unpack_job *job = context;
    const layout *l = &job->layout;
    const int32_t k = l->shape->k;
    for (int32_t i = begin; i < end; i++) {
        const int32_t row = job->rows[i], r = row % ROWS;
        const uint8_t *block = job->tiles + row / ROWS * l->block_bytes;
        float *out = job->weights + (int64_t)i * k;
        for (int32_t c = 0; c < k; c += l->step_columns) {
            const int32_t g = l->shape->group_size ? c / l->shape->group_size : 0;
            const float scale = tail_value(l, block, r, g, 0);
            const float zero = l->shape->has_zeros ? tail_value(l, block, r, g, 1) : l->shape->zero;
            uint8_t codes[STEP_COLUMNS];
            unpack_step(l->shape, block + step_offset(l, r, c), codes);
            for (int32_t j = 0; j < l->step_columns && c + j < k; j++) out[c + j] = ((float)codes[j] - zero) * scale;
        }
    }
}

int tmac_dequantize_rows(const tmac_shape *shape, const uint8_t *tiles, const int32_t *rows, int32_t n_rows, float *out)
{
    if (!tmac_shape_valid(shape) || !tiles || !rows || n_rows < 0 || !out) return TMAC_ERR_ARGUMENT;
    for (int32_t i = 0; i < n_rows; i++)
        if (rows[i] < 0 || rows[i] >= shape->m) return TMAC_ERR_ARGUMENT;
    unpack_job job = {.layout = layout_of(shape), .tiles = tiles, .rows = rows, .weights = out};
    tmac_parallel_for(n_rows, 4, dequantize_rows, &job);
    return TMAC_OK;
}
