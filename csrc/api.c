/* Initialisation and the life of a matrix. Knows threads, memory and instruction sets; no arithmetic. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"
#include "matrix.h"
#include "threadpool.h"

static const tmac_kernels *selected; /* NULL before tmac_init */

const char *tmac_status_text(int status)
{
    switch (status) {
    case TMAC_OK: return "done";
    case TMAC_ERR_ARGUMENT: return "an argument is outside its contract";
    case TMAC_ERR_MEMORY: return "out of memory";
    case TMAC_ERR_ISA: return "unknown or unsupported instruction set, or none selected";
    case TMAC_ERR_NONFINITE: return "NaN or infinity in the input";
    case TMAC_ERR_CODE: return "a code is outside 0 .. 2^bits - 1, or 0 .. 2 where ternary";
    case TMAC_ERR_THREADS: return "threads could not be started";
    case TMAC_ERR_RANGE: return "weights too large for a float16 scale";
    default: return "unknown status";
    }
}

int tmac_init(const char *isa, int n_threads)
{
    if (n_threads < 1 || n_threads > TMAC_MAX_THREADS) return TMAC_ERR_ARGUMENT;
    const tmac_kernels *kernels = tmac_isa_find(isa);
    if (!kernels) return TMAC_ERR_ISA;
    selected = kernels;
    if (n_threads == tmac_pool_size()) return TMAC_OK;
    return tmac_pool_start(n_threads) ? TMAC_ERR_THREADS : TMAC_OK;
}

const char *tmac_isa_selected(void) { return selected ? selected->name : NULL; }

int tmac_has_fast_aggregation(void) { return selected && selected->fast_aggregation; }

int tmac_n_threads(void) { return tmac_pool_size(); }

int tmac_shape_valid(const tmac_shape *s)
{
    return s && s->m >= 1 && s->k >= 1 && s->k <= TMAC_MAX_COLUMNS && s->bits >= 1 && s->bits <= TMAC_MAX_BITS &&
           (s->group_size == 0 || s->group_size == 32 || s->group_size == 64 || s->group_size == 128) &&
           (s->has_zeros == 0 || s->has_zeros == 1) && isfinite(s->zero) &&
           (s->encoding == TMAC_PLANES || (s->encoding == TMAC_TERNARY && s->bits == 2 && s->group_size == 0 &&
                                           s->has_zeros == 0 && s->zero == 1.0f));
}

int64_t tmac_packed_size(const tmac_shape *shape)
{
    return tmac_shape_valid(shape) ? tmac_n_blocks(shape) * tmac_block_bytes(shape) : TMAC_ERR_ARGUMENT;
}

typedef struct {
    const tmac_matrix *matrix;
    const uint8_t *tiles;
} load_job;

/* Row blocks [begin, end): steps through `reorder`, scales as they are. */
static void load_blocks(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    const load_job *job = context;
    const tmac_shape *shape = &job->matrix->shape;
    const int64_t block_bytes = tmac_block_bytes(shape), segment_bytes = tmac_segment_bytes(shape);
    const int64_t step_bytes = (int64_t)shape->bits * VECTOR_BYTES;
    const int64_t steps_bytes = step_bytes * tmac_steps_per_segment(shape);
    const uint8_t *in = job->tiles + begin * block_bytes;
    uint8_t *out = (uint8_t *)job->matrix->memory.data + begin * block_bytes;
    if (!job->matrix->kernels->reorder) {
        memcpy(out, in, (size_t)((end - begin) * block_bytes));
        return;
    }
    const int64_t row_tail = block_bytes - tmac_n_segments(shape) * segment_bytes;
    for (int32_t block = begin; block < end; block++) {
        for (int32_t s = 0; s < tmac_n_segments(shape); s++, in += segment_bytes, out += segment_bytes) {
            for (int64_t at = 0; at < steps_bytes; at += step_bytes)
                job->matrix->kernels->reorder(shape->bits, in + at, out + at);
            memcpy(out + steps_bytes, in + steps_bytes, (size_t)(segment_bytes - steps_bytes));
        }
        memcpy(out, in, (size_t)row_tail);
        in += row_tail;
        out += row_tail;
    }
}

/* Slabs [begin, end) of a ternary matrix, and their scales. */
static void load_slabs(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    const load_job *job = context;
    const tmac_shape *shape = &job->matrix->shape;
    const tmac_kernels *kernels = job->matrix->kernels;
    const int64_t block_bytes = tmac_block_bytes(shape), scales_bytes = TMAC_ROWS_PER_BLOCK * (int64_t)sizeof(float);
    const int64_t codes_bytes = tmac_memory_codes(kernels, shape);
    uint8_t *memory = job->matrix->memory.data, *scales = memory + tmac_n_blocks(shape) * codes_bytes;
    for (int32_t i = begin; i < end; i++) {
        const int32_t first = tmac_slab_block(job->matrix, i), last = tmac_slab_block(job->matrix, i + 1);
        kernels->ternary_reorder(shape, job->tiles + first * block_bytes, last - first, memory + first * codes_bytes);
        for (int32_t b = first; b < last; b++)
            memcpy(scales + b * scales_bytes, job->tiles + (b + 1) * block_bytes - scales_bytes, (size_t)scales_bytes);
    }
}

/* Slabs of about the same size, at most TERNARY_SLAB_BLOCKS, the same number for every thread. */
static int32_t count_slabs(const tmac_shape *shape)
{
    const int32_t blocks = tmac_n_blocks(shape), threads = tmac_pool_size(), round = threads * TERNARY_SLAB_BLOCKS;
    const int32_t slabs = (blocks - 1) / round * threads + threads;
    return slabs < blocks ? slabs : blocks;
}

int64_t tmac_memory_size(const tmac_shape *shape)
{
    if (!tmac_shape_valid(shape)) return TMAC_ERR_ARGUMENT;
    return selected ? tmac_n_blocks(shape) * tmac_memory_block(selected, shape) : TMAC_ERR_ISA;
}

/* A matrix of this shape as the running instruction set holds it, without memory. */
static int make(const tmac_shape *shape, int32_t slabs, tmac_matrix **out)
{
    if (!selected) return TMAC_ERR_ISA;
    tmac_matrix *matrix = calloc(1, sizeof *matrix);
    if (!matrix) return TMAC_ERR_MEMORY;
    matrix->shape = *shape;
    matrix->kernels = selected;
    if (shape->encoding == TMAC_TERNARY) matrix->n_slabs = slabs;
    *out = matrix;
    return TMAC_OK;
}

int tmac_matrix_load(const tmac_shape *shape, const uint8_t *tiles, tmac_matrix **out)
{
    tmac_matrix *matrix;
    if (!tmac_shape_valid(shape) || !tiles || !out) return TMAC_ERR_ARGUMENT;
    const int status = make(shape, count_slabs(shape), &matrix);
    if (status != TMAC_OK) return status;
    matrix->memory = tmac_memory_alloc((size_t)tmac_memory_size(shape));
    if (!matrix->memory.data) {
        free(matrix);
        return TMAC_ERR_MEMORY;
    }
    load_job job = {matrix, tiles};
    if (matrix->n_slabs) tmac_parallel_for(matrix->n_slabs, 1, load_slabs, &job);
    else tmac_parallel_for(tmac_n_blocks(shape), 1, load_blocks, &job);
    *out = matrix;
    return TMAC_OK;
}

int tmac_matrix_view(const tmac_shape *shape, const uint8_t *data, int64_t n_bytes, int32_t slabs, tmac_matrix **out)
{
    tmac_matrix *matrix;
    if (!tmac_shape_valid(shape) || !data || (uintptr_t)data % 64 || !out) return TMAC_ERR_ARGUMENT;
    const int status = make(shape, slabs, &matrix);
    if (status != TMAC_OK) return status;
    const int sound = shape->encoding == TMAC_TERNARY ? slabs >= 1 && slabs <= tmac_n_blocks(shape) : slabs == 0;
    if (sound && n_bytes == tmac_memory_size(shape)) {
        matrix->memory.data = (void *)(uintptr_t)data; /* products only read */
        matrix->memory.bytes = (size_t)n_bytes;
        *out = matrix;
        return TMAC_OK;
    }
    tmac_matrix_free(matrix);
    return TMAC_ERR_ARGUMENT;
}

int tmac_matrix_keeps_order(const tmac_shape *shape)
{
    return tmac_shape_valid(shape) && shape->encoding == TMAC_PLANES && selected && !selected->reorder;
}

const uint8_t *tmac_matrix_data(const tmac_matrix *matrix, int32_t *slabs)
{
    if (!matrix) return NULL;
    if (slabs) *slabs = matrix->n_slabs;
    return matrix->memory.data;
}

int tmac_matrix_tune(tmac_matrix *matrix, const tmac_tuning *t)
{
    if (!matrix || !t || t->prefetch < -1 || t->prefetch > 1 << 20 || t->panel_bytes < 0 || t->panel_bytes > 1 << 30)
        return TMAC_ERR_ARGUMENT;
    matrix->tuning = *t;
    return TMAC_OK;
}

void tmac_matrix_free(tmac_matrix *matrix)
{
    if (!matrix) return;
    tmac_pool_settle(); /* a thread may be reading ahead in it */
    tmac_memory_free(&matrix->memory);
    free(matrix);
}

int64_t tmac_matrix_bytes(const tmac_matrix *matrix, int64_t *huge)
{
    if (!matrix) return TMAC_ERR_ARGUMENT;
    if (huge) *huge = (int64_t)matrix->memory.huge_bytes;
    return (int64_t)matrix->memory.bytes;
}
