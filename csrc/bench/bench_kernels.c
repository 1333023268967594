/* Speed of one instruction set's kernels, without pool and Python:  bench_kernels [isa [threads [n]]]
 * Per bit width and table kind: GEMV and GEMM (n tokens) with weights in the cache, GEMV with weights in DRAM, and plain
 * reads of the same memory between the runs as the ceiling. Best of many short runs, as other programs may be running.
 * Tables are built by the scalar kernels, and results compared with theirs before anything is timed. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "dispatch.h"
#include "memory.h"

enum { K = 4096, CACHE_BYTES = 256 << 10, DRAM_BYTES = 256 << 20, MAX_THREADS = 64, GROUP = 128, PANEL = 16, DRAM_PARTS = 16 };

typedef struct {
    const tmac_kernels *isa;
    const tmac_shape *shape;
    const tmac_lut *lut;
    const uint8_t *weights;
    float *y;
    int32_t begin, end; /* row blocks */
    int op;             /* 'v' gemv, 'm' gemm, 'r' read */
    uint64_t checksum;
} job;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *run_job(void *argument)
{
    job *j = argument;
    const int64_t block_bytes = tmac_block_bytes(j->shape);
    if (j->op == 'v') j->isa->gemv(j->shape, j->weights, j->lut, j->begin, j->end, j->y);
    for (int32_t s = 0; j->op == 'm' && s < K / GROUP; s += PANEL)
        j->isa->gemm(j->shape, j->weights, j->lut, j->begin, j->end, s, s + PANEL, j->y, j->shape->m);
    if (j->op == 'r') {
        typedef uint64_t vector __attribute__((vector_size(64)));
        const vector *at = (const void *)(j->weights + j->begin * block_bytes);
        const vector *end = (const void *)(j->weights + j->end * block_bytes);
        vector a = {0}, b = {0};
        for (; at < end; at += 2) {
            a ^= at[0], b ^= at[1];
            __builtin_prefetch(at + 32), __builtin_prefetch(at + 33);
        }
        a ^= b;
        j->checksum = a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
    }
    return NULL;
}

/* Seconds of one run over row blocks [begin, end), split evenly over the threads. */
static double run(job whole, int op, int threads, int32_t begin, int32_t end)
{
    job jobs[MAX_THREADS];
    pthread_t ids[MAX_THREADS];
    const int64_t blocks = end - begin;
    double start = now();
    for (int i = 0; i < threads; i++) {
        jobs[i] = whole, jobs[i].op = op;
        jobs[i].begin = begin + (int32_t)(blocks * i / threads), jobs[i].end = begin + (int32_t)(blocks * (i + 1) / threads);
        if (i) pthread_create(&ids[i], NULL, run_job, &jobs[i]);
    }
    run_job(&jobs[0]);
    for (int i = 1; i < threads; i++) pthread_join(ids[i], NULL);
    double seconds = now() - start;
    volatile uint64_t keep = jobs[0].checksum;
    (void)keep;
    return seconds;
}

static double best(job whole, int op, int runs)
{
    double least = 1e9;
    while (runs--) {
        double seconds = run(whole, op, 1, 0, tmac_n_blocks(whole.shape));
        if (seconds < least) least = seconds;
    }
    return least;
}

/* Bytes per second of GEMV and of plain reads over parts of a matrix larger than the caches, in turns. */
static void best_stream(job whole, int threads, int rounds, double *gemv, double *read)
{
    const int32_t part = tmac_n_blocks(whole.shape) / DRAM_PARTS;
    const double bytes = (double)part * (double)tmac_block_bytes(whole.shape);
    *gemv = *read = 0;
    for (int i = 0; i < rounds * DRAM_PARTS; i++) {
        const int32_t at = i % DRAM_PARTS * part;
        double *rate = (i + i / DRAM_PARTS) % 2 ? gemv : read;
        double now_rate = bytes / run(whole, rate == gemv ? 'v' : 'r', threads, at, at + part);
        if (now_rate > *rate) *rate = now_rate;
    }
}

static tmac_lut make_tables(int exact, int32_t n)
{
    const size_t floats = (size_t)(K / GROUP * n) * sizeof(float);
    tmac_lut lut = {n, GROUP, exact, tmac_memory_alloc((size_t)K / 16 * (size_t)(n * (1 + exact)) * 64).data,
                    malloc(floats), malloc(floats), calloc((size_t)n, sizeof(float)), malloc((size_t)n * sizeof(float))};
    float x[K];
    int8_t q[K];
    for (int32_t t = 0; t < n; t++) {
        for (int c = 0; c < K; c++) x[c] = (float)(rand() % 2001 - 1000) / 777, q[c] = (int8_t)(rand() % 256);
        if (exact) tmac_kernels_scalar.lut_build_exact(q, K, t, 0, K / GROUP, &lut);
        else tmac_kernels_scalar.lut_build(x, K, t, 0, K / GROUP, &lut);
        lut.token_scales[t] = 1;
    }
    return lut;
}

static void fill_weights(const tmac_shape *s, uint8_t *at)
{
    const int64_t segment = tmac_segment_bytes(s), tail = segment - tmac_steps_per_segment(s) * s->bits * VECTOR_BYTES;
    uint64_t state = 88172645463325252u;
    for (int64_t i = 0; i < tmac_n_blocks(s) * tmac_n_segments(s); i++, at += segment) {
        for (int64_t j = 0; j < segment; j += 8) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            memcpy(at + j, &state, 8);
        }
        for (int64_t j = segment - tail; j < segment; j += 2) memcpy(at + j, &(uint16_t){0x3c00}, 2);
    }
}

static void measure(const tmac_kernels *isa, int bits, int exact, int threads, int n)
{
    tmac_lut one = make_tables(exact, 1), many = make_tables(exact, n);
    tmac_shape dram = {0, K, bits, GROUP, 0, (float)(1 << (bits - 1))}, cache = dram;
    cache.m = CACHE_BYTES * 8 / bits / K / 64 * 64, dram.m = DRAM_BYTES / bits * 8 / K / 64 * 64;
    const size_t bytes = (size_t)(tmac_block_bytes(&dram) * tmac_n_blocks(&dram));
    const size_t y_floats = (size_t)dram.m + (size_t)(cache.m * n);
    tmac_memory file_memory = tmac_memory_alloc(bytes), own_memory = {0};
    uint8_t *file = file_memory.data, *own = file;
    fill_weights(&dram, file);
    if (isa->reorder) {
        own_memory = tmac_memory_alloc(bytes), own = own_memory.data;
        memcpy(own, file, bytes);
        for (int64_t i = 0; i < (int64_t)tmac_n_blocks(&dram) * tmac_n_segments(&dram) * tmac_steps_per_segment(&dram); i++) {
            const int32_t steps = tmac_steps_per_segment(&dram);
            const int64_t at = i / steps * tmac_segment_bytes(&dram) + i % steps * bits * VECTOR_BYTES;
            isa->reorder(bits, file + at, own + at);
        }
    }
    float *y = malloc(y_floats * 4), *want = malloc(y_floats * 4);
    tmac_kernels_scalar.gemm(&cache, file, &many, 0, 1, 0, K / GROUP, want, cache.m);
    isa->gemm(&cache, own, &many, 0, 1, 0, K / GROUP, y, cache.m);
    for (int t = 0; t < n; t++)
        if (memcmp(y + t * cache.m, want + t * cache.m, 64 * 4)) fprintf(stderr, "WRONG RESULTS\n"), exit(1);

    const double weights = (double)cache.m * K, big = (double)dram.m * K;
    job small = {isa, &cache, &one, own, y, 0, 0, 0, 0}, wide = small, large = small;
    wide.lut = &many, large.shape = &dram;
    double gemv = best(small, 'v', 300), gemm = best(wide, 'm', 30), stream, read;
    best_stream(large, threads, 20, &stream, &read);
    printf("%-7s %d bits %-5s  cache: GEMV %6.1f, GEMM n=%d %6.1f GMAC/s", isa->name, bits, exact ? "exact" : "int8",
           weights / gemv * 1e-9, n, weights * n / gemm * 1e-9);
    printf(" | DRAM, %d threads: GEMV %6.1f GMAC/s, %5.1f of %5.1f GB/s = %3.0f %%\n", threads,
           big / (double)bytes * stream * 1e-9, stream * 1e-9, read * 1e-9, stream / read * 100);
    fflush(stdout);
    tmac_memory_free(&file_memory), tmac_memory_free(&own_memory); /* what is small goes with the process */
}

int main(int argc, char **argv)
{
    const tmac_kernels *isa = tmac_isa_find(argc > 1 ? argv[1] : NULL);
    const int threads = argc > 2 ? atoi(argv[2]) : 1, n = argc > 3 ? atoi(argv[3]) : 64;
    if (!isa || threads < 1 || threads > MAX_THREADS || n < 1) {
        fprintf(stderr, "usage: bench_kernels [isa [threads [n]]]\n");
        return 2;
    }
    for (int exact = 0; exact < 2; exact++)
        for (int bits = 1; bits <= TMAC_MAX_BITS; bits += bits < 4 ? 1 : 2) measure(isa, bits, exact, threads, n);
    return 0;
}
