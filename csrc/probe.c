/* What the machine can do at best: reading a matrix's bytes once, on the same threads, and doing nothing else; and what a
 * job costs that does nothing. */
#include <stdatomic.h>
#include <time.h>

#include "matrix.h"
#include "threadpool.h"

/* Bytes that a thread takes at a time, whatever the streams: long enough for each of them (16 KiB: a quarter slower). */
enum { PORTION = 256 << 10 };

typedef uint64_t lane __attribute__((vector_size(64)));

typedef struct {
    const lane *data;
    int64_t n; /* lanes */
    int n_streams;
    _Atomic uint64_t checksum;
} read_job;

/* S streams side by side over n lanes. */
#define READ(S)                                                                                                     \
    static uint64_t read_##S(const lane *at, int64_t n)                                                             \
    {                                                                                                               \
        const int64_t length = n / S;                                                                               \
        lane a = {0}, b = {0};                                                                                      \
        for (int64_t i = 0; i < length; i++) {                                                                      \
            _Pragma("GCC unroll 8") for (int s = 0; s < S; s++) b ^= at[s * length + i];                            \
        }                                                                                                           \
        for (int64_t i = length * S; i < n; i++) a ^= at[i];                                                        \
        a ^= b;                                                                                                     \
        return a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];                                               \
    }
READ(1) READ(2) READ(4) READ(8)

static void read_portions(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    enum { LANES = PORTION / sizeof(lane) };
    read_job *job = context;
    for (int64_t i = begin; i < end; i++) {
        const lane *at = job->data + i * LANES;
        const int64_t left = job->n - i * LANES, n = left < LANES ? left : LANES;
        const uint64_t sum = job->n_streams == 1   ? read_1(at, n)
                             : job->n_streams == 2 ? read_2(at, n)
                             : job->n_streams == 4 ? read_4(at, n)
                                                   : read_8(at, n);
        atomic_fetch_xor(&job->checksum, sum);
    }
}

int tmac_matrix_read(const tmac_matrix *matrix, int n_streams, uint64_t *checksum)
{
    const int known = n_streams == 1 || n_streams == 2 || n_streams == 4 || n_streams == 8;
    if (!matrix || !checksum || !known) return TMAC_ERR_ARGUMENT;
    read_job job = {matrix->memory.data, (int64_t)(matrix->memory.bytes / sizeof(lane)), n_streams, 0};
    const int64_t portions = ((int64_t)matrix->memory.bytes + PORTION - 1) / PORTION;
    tmac_parallel_for((int32_t)portions, 1, read_portions, &job);
    *checksum = job.checksum;
    return TMAC_OK;
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void spin(void *context, int32_t begin, int32_t end, int thread)
{
    (void)begin;
    (void)end;
    (void)thread;
    const int64_t until = now() + *(int64_t *)context;
    while (now() < until) continue;
}

int64_t tmac_fork_join_time(int32_t n_jobs, int64_t work)
{
    if (n_jobs < 1 || work < 0) return TMAC_ERR_ARGUMENT;
    const int threads = tmac_pool_size();
    const int64_t start = now();
    for (int32_t i = 0; i < n_jobs; i++) tmac_parallel_for(threads, 1, spin, &work);
    return now() - start;
}
