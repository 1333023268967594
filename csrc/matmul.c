/* tmac_matmul: activations become tables, tables and weights become products. Knows threads and memory; the arithmetic
 * is the kernels'. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "half.h"
#include "matrix.h"
#include "threadpool.h"

enum {
    MAX_TOKENS = 64,         /* per pass over the weights */
    TOKEN_UNIT = 8,          /* passes are cut at multiples of this */
    PANEL_BYTES = 512 << 10, /* tables that are live at once: half of a usual L2 cache; the default of tmac_tuning */
    GEMV_CHUNK = 64 << 10,   /* bytes of weights that a thread takes at a time, at least */
    READ_AHEAD = 512 << 10,  /* bytes of the next matrix that a thread reads while it waits: half of a usual L2 cache */
    READ_AHEAD_STEP = 4096,
    BUILD_COLUMNS = 2048     /* columns x tokens whose tables a thread builds at a time */
};

/* One workspace serves all calls, which take turns; it grows on demand. */
static struct {
    pthread_mutex_t mutex;
    tmac_memory memory;
} workspace = {.mutex = PTHREAD_MUTEX_INITIALIZER};

typedef struct {
    const tmac_matrix *matrix;
    const void *x; /* at the first token of this pass */
    int type;
    int64_t ldx;
    const float *x_scales;
    float *y;
    int64_t ldy;
    tmac_lut lut;
    float *floats;  /* (n, k) activations raised to float32, where they are float16 */
    int8_t *ints;   /* (n, k) activations quantised per token, where they are float and tables exact */
    char *scratch;  /* of ternary_gemm, one part per thread */
    int32_t segment_begin, segment_end; /* of the running panel */
    _Atomic int nonfinite;
} product;

static const float *float_row(const product *p, int32_t t)
{
    return p->type == TMAC_F16 ? p->floats + (int64_t)t * p->matrix->shape.k : (const float *)p->x + t * p->ldx;
}

static const int8_t *int_row(const product *p, int32_t t)
{
    return p->type == TMAC_I8 ? (const int8_t *)p->x + t * p->ldx : p->ints + (int64_t)t * p->matrix->shape.k;
}

/* Tokens [begin, end): to float32, then for exact tables to int8 with one scale per token. */
static void convert_tokens(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    product *p = context;
    const int32_t k = p->matrix->shape.k;
    for (int32_t t = begin; t < end; t++) {
        if (p->type == TMAC_F16) {
            const uint16_t *x = (const uint16_t *)p->x + t * p->ldx;
            float *row = p->floats + (int64_t)t * k;
            for (int32_t c = 0; c < k; c++) row[c] = tmac_float_of_half(x[c]);
        }
        float scale = 1;
        if (p->type == TMAC_I8) scale = p->x_scales ? p->x_scales[t] : 1;
        else if (p->lut.exact) scale = p->matrix->kernels->quantize_row(float_row(p, t), k, p->ints + (int64_t)t * k);
        if (!isfinite(scale)) p->nonfinite = 1;
        p->lut.token_scales[t] = scale;
    }
}

/* Tables of segments [begin, end), all tokens. */
static void build_tables(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    product *p = context;
    const int32_t k = p->matrix->shape.k;
    int nonfinite = 0;
    for (int32_t t = 0; t < p->lut.n; t++)
        if (p->lut.exact) p->matrix->kernels->lut_build_exact(int_row(p, t), k, t, begin, end, &p->lut);
        else nonfinite |= p->matrix->kernels->lut_build(float_row(p, t), k, t, begin, end, &p->lut);
    if (nonfinite) p->nonfinite = 1;
}

static void multiply_one(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    product *p = context;
    p->matrix->kernels->gemv(&p->matrix->shape, p->matrix->memory.data, &p->lut, begin, end, p->y);
}

static void multiply_many(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    product *p = context;
    p->matrix->kernels->gemm(&p->matrix->shape, p->matrix->memory.data, &p->lut, begin, end, p->segment_begin,
                             p->segment_end, p->y, p->ldy);
}

static void build_ternary(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    product *p = context;
    for (int32_t t = 0; t < p->lut.n; t++)
        p->matrix->kernels->ternary_build(int_row(p, t), p->matrix->shape.k, t, begin, end, &p->lut);
}

static size_t scratch_bytes(const product *p)
{
    return ((size_t)p->matrix->kernels->ternary.scratch_bytes + 63) / 64 * 64;
}

static void multiply_slabs(void *context, int32_t begin, int32_t end, int thread)
{
    product *p = context;
    const tmac_shape *shape = &p->matrix->shape;
    const tmac_kernels *kernels = p->matrix->kernels;
    const int64_t codes_bytes = tmac_memory_codes(kernels, shape);
    void *scratch = p->scratch + (size_t)thread * scratch_bytes(p);
    const uint8_t *memory = p->matrix->memory.data;
    const float *scales = (const void *)(memory + tmac_n_blocks(shape) * codes_bytes);
    for (int32_t i = begin; i < end; i++) {
        const int32_t first = tmac_slab_block(p->matrix, i), last = tmac_slab_block(p->matrix, i + 1);
        const uint8_t *slab = memory + first * codes_bytes;
        if (p->lut.n == 1) kernels->ternary_gemv(shape, slab, scales, &p->lut, first, last, p->y);
        else kernels->ternary_gemm(shape, slab, scales, &p->lut, first, last, scratch, p->y, p->ldy);
    }
}

/* `multiply` of a ternary matrix; its kernels go panel by panel themselves. */
static void multiply_ternary(product *p)
{
    const int32_t build_grain = BUILD_COLUMNS / p->matrix->kernels->ternary.step_columns / p->lut.n;
    const int32_t steps = tmac_memory_steps(p->matrix->kernels, &p->matrix->shape);
    tmac_parallel_for(steps, build_grain > 1 ? build_grain : 1, build_ternary, p);
    tmac_parallel_for(p->matrix->n_slabs, 1, multiply_slabs, p);
}

static void sum_totals(const tmac_lut *lut, int32_t n_segments)
{
    for (int32_t t = 0; t < lut->n; t++) lut->totals[t] = 0;
    for (int32_t s = 0; s < n_segments; s++)
        for (int32_t t = 0; t < lut->n; t++) lut->totals[t] += lut->sums[(int64_t)s * lut->n + t];
}

/* Row blocks that a thread takes at a time: enough bytes to stream, few enough to share. */
static int32_t gemv_grain(const tmac_shape *shape)
{
    const int32_t shared = tmac_n_blocks(shape) / (2 * tmac_pool_size());
    const int64_t bytes = tmac_block_bytes(shape) * GEMV_BLOCKS;
    const int64_t wanted = bytes < GEMV_CHUNK ? GEMV_CHUNK / bytes * GEMV_BLOCKS : GEMV_BLOCKS;
    return (int32_t)(shared < 1 ? 1 : wanted < shared ? wanted : shared);
}

/* One pass: at most MAX_TOKENS tokens. K panels are the outer loop, so that the tables of one stay in the L2 cache while
 * all rows go by. */
static void multiply(product *p)
{
    const tmac_shape *shape = &p->matrix->shape;
    const int32_t n = p->lut.n, n_segments = tmac_n_segments(shape), n_blocks = tmac_n_blocks(shape);
    const int32_t build_grain = BUILD_COLUMNS / p->lut.segment_columns / n;
    tmac_parallel_for(n, 1, convert_tokens, p);
    if (p->matrix->n_slabs) {
        if (!p->nonfinite) multiply_ternary(p);
        return;
    }
    tmac_parallel_for(n_segments, build_grain > 1 ? build_grain : 1, build_tables, p);
    if (p->nonfinite) return;
    if (shape->group_size == 0) sum_totals(&p->lut, n_segments);
    if (n == 1) {
        tmac_parallel_for(n_blocks, gemv_grain(shape), multiply_one, p);
        return;
    }
    const int32_t segment_bytes = p->lut.segment_columns / QUAD_COLUMNS * n * (1 + p->lut.exact) * TABLE_BYTES;
    const int32_t panel_bytes = p->matrix->tuning.panel_bytes ? p->matrix->tuning.panel_bytes : PANEL_BYTES;
    const int32_t panel = segment_bytes < panel_bytes ? panel_bytes / segment_bytes : 1;
    for (int32_t begin = 0; begin < n_segments; begin += panel) {
        p->segment_begin = begin;
        p->segment_end = n_segments - begin < panel ? n_segments : begin + panel;
        tmac_parallel_for(n_blocks, 1, multiply_many, p);
    }
}

/* Hand out the next part of the workspace; with base NULL only its size is counted. */
static void *take(char *base, size_t *used, size_t bytes)
{
    void *part = base ? base + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return part;
}

/* Lay out tables and scratch for n tokens; returns the bytes used. */
static size_t lay_out(product *p, char *base, int32_t n, int exact)
{
    const tmac_shape *shape = &p->matrix->shape;
    const tmac_kernels *kernels = p->matrix->kernels;
    const int is_ternary = shape->encoding == TMAC_TERNARY;
    const size_t tokens = (size_t)n, k = (size_t)shape->k, n_segments = (size_t)tmac_n_segments(shape);
    const int64_t token_tables = is_ternary ? tmac_memory_steps(kernels, shape) * (int64_t)kernels->ternary.table_bytes
                                            : tmac_padded_k(shape) / QUAD_COLUMNS * (1 + exact) * TABLE_BYTES;
    size_t used = 0;
    p->lut.n = n;
    p->lut.segment_columns = tmac_segment_columns(shape);
    p->lut.exact = exact;
    p->lut.prefetch = p->matrix->tuning.prefetch;
    p->lut.tables = take(base, &used, tokens * (size_t)token_tables);
    p->lut.half_scales = take(base, &used, n_segments * tokens * sizeof(float));
    p->lut.sums = take(base, &used, n_segments * tokens * sizeof(float));
    p->lut.totals = take(base, &used, tokens * sizeof(float));
    p->lut.token_scales = take(base, &used, tokens * sizeof(float));
    p->floats = take(base, &used, p->type == TMAC_F16 ? tokens * k * sizeof(float) : 0);
    p->ints = take(base, &used, exact && p->type != TMAC_I8 ? tokens * k : 0);
    p->scratch = take(base, &used, is_ternary && n > 1 ? (size_t)tmac_pool_size() * scratch_bytes(p) : 0);
    return used;
}

/* Tokens of a pass: n cut into equal passes, rounded up to TOKEN_UNIT. */
static int32_t pass_tokens(int32_t n)
{
    const int32_t n_passes = (n + MAX_TOKENS - 1) / MAX_TOKENS, tokens = (n + n_passes - 1) / n_passes;
    return n_passes == 1 ? n : (tokens + TOKEN_UNIT - 1) / TOKEN_UNIT * TOKEN_UNIT;
}

static int run(product *p, int32_t n, int exact)
{
    static const size_t element_size[] = {[TMAC_F32] = 4, [TMAC_F16] = 2, [TMAC_BF16] = 2, [TMAC_I8] = 1};
    const int32_t tokens = pass_tokens(n);
    const size_t needed = lay_out(p, NULL, tokens, exact);
    if (needed > workspace.memory.bytes) {
        tmac_memory_free(&workspace.memory);
        workspace.memory = tmac_memory_alloc(needed);
        if (!workspace.memory.data) {
            workspace.memory.bytes = 0;
            return TMAC_ERR_MEMORY;
        }
    }
    const char *x = p->x;
    float *y = p->y;
    const float *x_scales = p->x_scales;
    for (int32_t t = 0; t < n && !p->nonfinite; t += tokens) {
        lay_out(p, workspace.memory.data, n - t < tokens ? n - t : tokens, exact);
        p->x = x + t * p->ldx * (int64_t)element_size[p->type];
        p->x_scales = x_scales ? x_scales + t : NULL;
        p->y = y + t * p->ldy;
        multiply(p);
    }
    return p->nonfinite ? TMAC_ERR_NONFINITE : TMAC_OK;
}

static int64_t thread_offset(const tmac_matrix *m, int thread)
{
    const tmac_shape *shape = &m->shape;
    if (m->n_slabs)
        return tmac_slab_block(m, tmac_range_begin(m->n_slabs, thread)) * tmac_memory_codes(m->kernels, shape);
    return tmac_range_begin(tmac_n_blocks(shape), thread) * tmac_block_bytes(shape);
}

/* Step by step into this thread's cache what it will begin its next product with. */
static int read_ahead(const void *context, int thread, int32_t step)
{
    const tmac_matrix *m = *(const tmac_matrix *const *)context;
    const int64_t begin = thread_offset(m, thread), end = thread_offset(m, thread + 1);
    const int64_t at = begin + (int64_t)step * READ_AHEAD_STEP, left = end - at;
    const volatile char *data = (const char *)m->memory.data + at;
    for (int64_t i = 0; i < READ_AHEAD_STEP && i < left; i += 64) (void)data[i];
    return left > READ_AHEAD_STEP && (step + 1) * READ_AHEAD_STEP < READ_AHEAD;
}

static void lock_workspace(void) { pthread_mutex_lock(&workspace.mutex); }

static void unlock_workspace(void) { pthread_mutex_unlock(&workspace.mutex); }

/* A fork waits for the running call, so that the child finds the workspace free. */
static void watch_forks(void) { pthread_atfork(lock_workspace, unlock_workspace, unlock_workspace); }

int tmac_matmul(const tmac_matrix *matrix, const void *x, int type, int64_t ldx, const float *x_scales, int32_t n,
                int tables, float *y, int64_t ldy, const tmac_matrix *next)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    const int exact = tables == TMAC_TABLES_EXACT || (matrix && matrix->shape.encoding == TMAC_TERNARY);
    const int fast = tables == TMAC_TABLES_FAST && !exact;
    if (!matrix || !x || !y || n < 1 || ldx < matrix->shape.k || ldy < matrix->shape.m) return TMAC_ERR_ARGUMENT;
    if (tables < TMAC_TABLES_INT8 || tables > TMAC_TABLES_FAST) return TMAC_ERR_ARGUMENT;
    if (type != TMAC_F32 && type != TMAC_F16 && type != TMAC_I8) return TMAC_ERR_ARGUMENT;
    if (type == TMAC_I8 ? !exact : x_scales != NULL) return TMAC_ERR_ARGUMENT;
    if (fast && !matrix->kernels->fast_aggregation) return TMAC_ERR_ISA;
    pthread_once(&once, watch_forks);
    product p = {.matrix = matrix, .x = x, .type = type, .ldx = ldx, .x_scales = x_scales, .y = y, .ldy = ldy,
                 .lut = {.fast = fast}};
    lock_workspace();
    const int status = run(&p, n, exact);
    if (n == 1 && next) tmac_pool_idle(read_ahead, &next, sizeof next);
    unlock_workspace();
    return status;
}
