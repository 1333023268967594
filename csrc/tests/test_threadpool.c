/* Every item runs exactly once, for every number of items, grain and threads; callers take turns; a forked child works. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "threadpool.h"

enum { MAX_ITEMS = 5000 };

typedef struct {
    _Atomic int runs[MAX_ITEMS];
    int32_t n, grain;
    _Atomic int bad_chunk;
} count_job;

static void count(void *context, int32_t begin, int32_t end, int thread)
{
    count_job *job = context;
    if (begin < 0 || begin >= end || end > job->n || thread < 0 || thread >= tmac_pool_size()) job->bad_chunk = 1;
    if (end - begin > job->grain && !(begin == 0 && end == job->n && thread == 0)) job->bad_chunk = 1;
    for (int32_t i = begin; i < end; i++) job->runs[i]++;
}

static void check_once(int32_t n, int32_t grain)
{
    static count_job job;
    memset(&job, 0, sizeof job);
    job.n = n;
    job.grain = grain;
    tmac_parallel_for(n, grain, count, &job);
    CHECK(!job.bad_chunk, "n %d grain %d threads %d", n, grain, tmac_pool_size());
    for (int32_t i = 0; i < MAX_ITEMS; i++)
        CHECK(job.runs[i] == (i < n), "item %d ran %d times; n %d grain %d threads %d", i, job.runs[i], n, grain,
              tmac_pool_size());
}

static void test_every_item_once(void)
{
    static const int32_t sizes[] = {0, 1, 2, 3, 7, 64, 65, 1000, MAX_ITEMS}, grains[] = {1, 2, 5, 64, 10000};
    for (int threads = 1; threads <= 9; threads++) {
        CHECK(tmac_pool_start(threads) == 0, "threads %d", threads);
        CHECK(tmac_pool_size() == threads, "threads %d", threads);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (size_t j = 0; j < sizeof grains / sizeof *grains; j++) check_once(sizes[i], grains[j]);
    }
}

typedef struct {
    int32_t values[64];
} add_job;

static void add(void *context, int32_t begin, int32_t end, int thread)
{
    (void)thread;
    for (int32_t i = begin; i < end; i++) ((add_job *)context)->values[i]++;
}

/* Many jobs in a row, some after a pause in which the workers fall asleep: no wake-up is lost, no write is missed. */
static void test_many_jobs(void)
{
    enum { JOBS = 4000 };
    add_job job = {{0}};
    tmac_pool_start(3);
    for (int i = 0; i < JOBS; i++) {
        tmac_parallel_for(64, 1 + i % 5, add, &job);
        if (i % 500 == 0) usleep(2000);
    }
    for (int i = 0; i < 64; i++) CHECK(job.values[i] == JOBS, "item %d: %d", i, job.values[i]);
}

typedef struct {
    _Atomic int n_done, n_threads_seen[16];
} slow_job;

static void slow(void *context, int32_t begin, int32_t end, int thread)
{
    slow_job *job = context;
    usleep(begin == 0 ? 500 : 3000); /* the caller, which begins with item 0, is done first */
    job->n_done += end - begin;
    job->n_threads_seen[thread] = 1;
}

/* The caller waits for items that others still hold, and the others do work. */
static void check_all_take_part(int n_threads)
{
    slow_job job = {0};
    for (int i = 0; i < 50; i++) {
        job.n_done = 0;
        tmac_parallel_for(n_threads, 1, slow, &job);
        CHECK(job.n_done == n_threads, "returned after %d of %d items", job.n_done, n_threads);
    }
    for (int i = 0; i < n_threads; i++) CHECK(job.n_threads_seen[i], "thread %d of %d never worked", i, n_threads);
}

static void test_all_take_part(void)
{
    tmac_pool_start(4);
    check_all_take_part(4);
}

typedef struct {
    _Atomic int n_bad, n_workers;
} mask_job;

static void look_at_mask(void *context, int32_t begin, int32_t end, int thread)
{
    (void)begin;
    (void)end;
    mask_job *job = context;
    sigset_t mask;
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    usleep(1000);
    if (!thread) return;
    job->n_workers++;
    if (!sigismember(&mask, SIGINT) || sigismember(&mask, SIGBUS)) job->n_bad++;
}

/* Workers leave Ctrl-C to others, not the faults that are their own. */
static void test_signals(void)
{
    mask_job job = {0};
    tmac_pool_start(3);
    for (int i = 0; i < 50; i++) tmac_parallel_for(3, 1, look_at_mask, &job);
    CHECK(job.n_workers > 0 && job.n_bad == 0, "%d bad of %d", job.n_bad, job.n_workers);
}

static void *many_jobs(void *argument)
{
    for (int i = 0; i < 500; i++) tmac_parallel_for(64, 4, add, argument);
    return NULL;
}

static void test_callers_take_turns(void)
{
    add_job jobs[4] = {{{0}}};
    pthread_t callers[4];
    tmac_pool_start(2);
    for (int i = 0; i < 4; i++) pthread_create(&callers[i], NULL, many_jobs, &jobs[i]);
    for (int i = 0; i < 4; i++) pthread_join(callers[i], NULL);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 64; j++) CHECK(jobs[i].values[j] == 500, "caller %d item %d", i, j);
}

typedef struct {
    _Atomic int n_steps[16], n_inside, n_bad;
} idle_job;

/* Takes n steps on every worker. */
typedef struct {
    idle_job *job;
    int32_t n;
} idle_context;

static int idle_step(const void *context, int thread, int32_t step)
{
    const idle_context *c = context;
    c->job->n_inside++;
    if (thread < 1 || thread >= tmac_pool_size() || step != c->job->n_steps[thread]++) c->job->n_bad = 1;
    usleep(10);
    c->job->n_inside--;
    return step + 1 < c->n;
}

/* Workers step while the caller is away, stop when told, and the next job is whole. */
static void test_idle_steps(void)
{
    int n_rounds[4] = {0}; /* in which a worker was awake */
    tmac_pool_start(4);
    for (int i = 0; i < 300; i++) {
        idle_job job = {0};
        const idle_context context = {&job, i % 3 == 0 ? 5 : INT32_MAX};
        check_once(64, 1);
        tmac_pool_idle(idle_step, &context, sizeof context);
        if (i % 2) usleep(300);
        if (i % 5 == 0) tmac_pool_idle(idle_step, &context, sizeof context); /* again: the first one ends */
        if (i % 7 == 0) check_once(1000, 3);
        else tmac_pool_settle();
        CHECK(job.n_inside == 0, "round %d: %d are still inside", i, job.n_inside);
        if (i % 5) CHECK(!job.n_bad, "round %d: steps out of order", i);
        for (int t = 0; t < 4; t++) {
            if (i % 3 == 0 && i % 5) CHECK(job.n_steps[t] <= 5, "round %d: %d steps of 5", i, job.n_steps[t]);
            n_rounds[t] += job.n_steps[t] > 0;
        }
    }
    for (int t = 1; t < 4; t++) CHECK(n_rounds[t] > 0, "worker %d never took a step", t);
    idle_job job = {0};
    const idle_context context = {&job, INT32_MAX};
    tmac_pool_idle(idle_step, &context, sizeof context);
    tmac_pool_start(1); /* ends them too */
    CHECK(job.n_inside == 0, "%d are still inside", job.n_inside);
    tmac_pool_idle(idle_step, &context, sizeof context);
    CHECK(job.n_inside == 0 && tmac_range_begin(10, 1) == 10, "one thread has no workers");
}

#ifndef TMAC_EMULATED /* qemu-user cannot fork a process with threads */
static void test_fork(void)
{
    idle_job job = {0};
    const idle_context context = {&job, INT32_MAX};
    tmac_pool_start(4);
    check_once(1000, 3);
    tmac_pool_idle(idle_step, &context, sizeof context); /* does not come along */
    const pid_t child = fork();
    if (child == 0) {
        alarm(20); /* a hang is a failure, not a hang of the test */
        check_once(1000, 3);
        check_all_take_part(4);
        _exit(tmac_pool_size() == 4 ? 0 : 1);
    }
    int status;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child status %d", status);
    tmac_pool_settle();
    check_once(1000, 3);
}
#endif

int main(void)
{
    test_every_item_once();
    test_many_jobs();
    test_all_take_part();
    test_callers_take_turns();
    test_signals();
    test_idle_steps();
#ifndef TMAC_EMULATED
    test_fork();
#endif
    tmac_pool_start(1);
    return 0;
}
