/* The ceiling of a product with one token: reading the matrix's bytes once, in the same portions and on the same
 * threads, and doing nothing else. */
#include <stdatomic.h>

#include "matrix.h"
#include "threadpool.h"

enum { PORTION = 64 << 10 }; /* bytes of weights that a thread takes at a time */

typedef uint64_t lane __attribute__((vector_size(64)));

typedef struct {
    const uint8_t *data;
    int64_t block_bytes;
    _Atomic uint64_t checksum;
} read_job;

static void read_blocks(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    read_job *job = context;
    const lane *at = (const void *)(job->data + begin * job->block_bytes);
    const lane *stop = (const void *)(job->data + end * job->block_bytes);
    lane a = {0}, b = {0};
    for (; at + 1 < stop; at += 2) {
        a ^= at[0];
        b ^= at[1];
    }
    if (at < stop) a ^= at[0];
    a ^= b;
    uint64_t sum = 0;
    for (int i = 0; i < 8; i++) sum ^= a[i];
    atomic_fetch_xor(&job->checksum, sum);
}

int tmac_matrix_read(const tmac_matrix *matrix, uint64_t *checksum)
{
    if (!matrix || !checksum) return TMAC_ERR_ARGUMENT;
    read_job job = {matrix->memory.data, tmac_memory_block(matrix->kernels, &matrix->shape), 0};
    const int64_t grain = PORTION / job.block_bytes;
    tmac_parallel_for(tmac_n_blocks(&matrix->shape), grain > 1 ? (int32_t)grain : 1, read_blocks, &job);
    *checksum = job.checksum;
    return TMAC_OK;
}
