#include "threadpool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

/* How long a worker waits awake for the next job: longer than the numpy work between two matrices of one layer, short
 * enough that an idle process shows no load. Attention over 512 tokens takes some 200 us, and waking a thread 30. */
enum { SPIN_NANOSECONDS = 300000, PAUSES_PER_LOOK = 32 };

/* What is left of one thread's range: begin << 32 | end, on a cache line of its own. */
typedef struct {
    _Alignas(64) _Atomic uint64_t left;
} work_range;

static struct {
    /* The job. Odd `ticket`: open. Workers look at task, context, ranges and idle work only after they have added
     * themselves to `active` and then seen an odd ticket; the caller changes them only while it is even and active is 0.
     * Idle work is a job that the caller leaves open. */
    _Alignas(64) _Atomic uint32_t ticket;
    _Alignas(64) _Atomic int active;
    _Alignas(64) tmac_task task;
    void *context;
    int32_t grain;
    tmac_idle_step idle_step; /* NULL: the job is `task` */
    _Alignas(16) char idle_context[TMAC_IDLE_CONTEXT];
    work_range ranges[TMAC_MAX_THREADS];

    int n_threads; /* the caller included */
    int n_started; /* workers that exist; fewer than n_threads - 1 in the child of a fork */
    pthread_t workers[TMAC_MAX_THREADS];
    _Atomic int stopping;

    pthread_mutex_t caller; /* held during a job, a start and a fork */
    _Atomic int n_sleeping;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} pool = {.n_threads = 1,
          .caller = PTHREAD_MUTEX_INITIALIZER,
          .mutex = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline uint64_t pack_range(int32_t begin, int32_t end) { return (uint64_t)(uint32_t)begin << 32 | (uint32_t)end; }

/* Take up to `grain` items off the front (the owner) or the back (others); 0 when none are left. */
static int take(work_range *range, int32_t grain, int from_back, int32_t *begin, int32_t *end)
{
    uint64_t left = atomic_load_explicit(&range->left, memory_order_relaxed), rest;
    do {
        const int32_t b = (int32_t)(left >> 32), e = (int32_t)(uint32_t)left;
        if (b >= e) return 0;
        const int32_t n = e - b < grain ? e - b : grain;
        *begin = from_back ? e - n : b;
        *end = *begin + n;
        rest = from_back ? pack_range(b, e - n) : pack_range(b + n, e);
    } while (!atomic_compare_exchange_weak(&range->left, &left, rest));
    return 1;
}

static void work(int thread)
{
    int32_t begin, end;
    while (take(&pool.ranges[thread], pool.grain, 0, &begin, &end)) pool.task(pool.context, begin, end, thread);
    for (int i = 1; i < pool.n_threads; i++) {
        work_range *other = &pool.ranges[(thread + i) % pool.n_threads];
        while (take(other, pool.grain, 1, &begin, &end)) pool.task(pool.context, begin, end, thread);
    }
}

static int is_open(uint32_t ticket, uint32_t seen) { return (ticket & 1) && ticket != seen; }

/* Wait for an open ticket other than `seen`: awake for a while, then asleep. */
static void wait_for_ticket(uint32_t seen)
{
    const int64_t start = now();
    do {
        for (int i = 0; i < PAUSES_PER_LOOK; i++) {
            if (is_open(atomic_load(&pool.ticket), seen)) return;
            pause_cpu();
        }
        sched_yield(); /* whom we wait for may want this CPU */
    } while (now() - start < SPIN_NANOSECONDS);
    pthread_mutex_lock(&pool.mutex);
    atomic_fetch_add(&pool.n_sleeping, 1);
    while (!is_open(atomic_load(&pool.ticket), seen)) pthread_cond_wait(&pool.wake, &pool.mutex);
    atomic_fetch_sub(&pool.n_sleeping, 1);
    pthread_mutex_unlock(&pool.mutex);
}

static void idle(int thread, uint32_t ticket)
{
    for (int32_t step = 0; atomic_load_explicit(&pool.ticket, memory_order_relaxed) == ticket; step++)
        if (!pool.idle_step(pool.idle_context, thread, step)) return;
}

/* Close the ticket if it is open, then wait until nobody is inside. */
static void close_ticket(void)
{
    if (atomic_load(&pool.ticket) & 1) atomic_fetch_add(&pool.ticket, 1); /* nobody can enter any more */
    for (int i = 1; atomic_load(&pool.active); i++)
        if (i % PAUSES_PER_LOOK) pause_cpu();
        else sched_yield(); /* a worker may have lost its CPU: leave it ours */
}

/* Open the ticket; sleepers count themselves before they look at it, so none can miss it. */
static void publish(void)
{
    atomic_fetch_add(&pool.ticket, 1);
    if (!atomic_load(&pool.n_sleeping)) return;
    pthread_mutex_lock(&pool.mutex);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.mutex);
}

static void *worker(void *argument)
{
    const int thread = (int)(intptr_t)argument;
    uint32_t seen = 0;
    for (;;) {
        wait_for_ticket(seen);
        atomic_fetch_add(&pool.active, 1);
        seen = atomic_load(&pool.ticket);
        const int stopping = atomic_load(&pool.stopping);
        if ((seen & 1) && !stopping) {
            if (pool.idle_step) idle(thread, seen);
            else work(thread);
        }
        atomic_fetch_sub(&pool.active, 1);
        if (stopping) return NULL;
    }
}

/* Workers start with every signal blocked that another thread can act on, Ctrl-C for one; those that tell of a fault of the
 * thread itself reach their handler. */
static int start_workers(void)
{
    sigset_t every, before;
    sigfillset(&every);
    static const int faults[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL};
    for (int i = 0; i < 4; i++) sigdelset(&every, faults[i]);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    int failed = 0;
    while (pool.n_started < pool.n_threads - 1 && !failed) {
        const intptr_t thread = pool.n_started + 1;
        failed = pthread_create(&pool.workers[pool.n_started], NULL, worker, (void *)thread);
        if (!failed) pool.n_started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) pool.n_threads = pool.n_started + 1;
    return failed ? -1 : 0;
}

static void stop_workers(void)
{
    close_ticket();
    atomic_store(&pool.stopping, 1);
    publish();
    for (int i = 0; i < pool.n_started; i++) pthread_join(pool.workers[i], NULL);
    atomic_store(&pool.stopping, 0);
    atomic_store(&pool.ticket, 0);
    pool.n_started = 0;
    pool.n_threads = 1;
}

static void before_fork(void) { pthread_mutex_lock(&pool.caller); }

static void after_fork_in_parent(void) { pthread_mutex_unlock(&pool.caller); }

/* The child has only the forking thread: the next job starts the others again. */
static void after_fork_in_child(void)
{
    pool.n_started = 0;
    atomic_store(&pool.active, 0);
    atomic_store(&pool.n_sleeping, 0);
    atomic_store(&pool.ticket, 0);
    pthread_mutex_init(&pool.mutex, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_mutex_unlock(&pool.caller);
}

static void watch_forks(void) { pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child); }

int tmac_pool_start(int n_threads)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&pool.caller);
    stop_workers();
    pool.n_threads = n_threads < TMAC_MAX_THREADS ? n_threads : TMAC_MAX_THREADS;
    const int status = start_workers();
    pthread_mutex_unlock(&pool.caller);
    return status;
}

int tmac_pool_size(void) { return pool.n_threads; }

int32_t tmac_range_begin(int32_t n, int thread) { return (int32_t)((int64_t)n * thread / pool.n_threads); }

static void run_on_all(int32_t n, int32_t grain, tmac_task task, void *context)
{
    close_ticket();
    pool.idle_step = NULL;
    pool.task = task;
    pool.context = context;
    pool.grain = grain;
    for (int i = 0; i < pool.n_threads; i++)
        atomic_store_explicit(&pool.ranges[i].left, pack_range(tmac_range_begin(n, i), tmac_range_begin(n, i + 1)),
                              memory_order_relaxed);
    publish();
    work(0);
    close_ticket();
}

void tmac_parallel_for(int32_t n, int32_t grain, tmac_task task, void *context)
{
    if (n <= 0) return;
    pthread_mutex_lock(&pool.caller);
    if (pool.n_started < pool.n_threads - 1) start_workers();
    if (pool.n_threads == 1 || n <= grain) task(context, 0, n, 0);
    else run_on_all(n, grain > 0 ? grain : 1, task, context);
    pthread_mutex_unlock(&pool.caller);
}

void tmac_pool_idle(tmac_idle_step step, const void *context, size_t bytes)
{
    pthread_mutex_lock(&pool.caller);
    if (pool.n_started) {
        close_ticket();
        pool.idle_step = step;
        memcpy(pool.idle_context, context, bytes);
        atomic_fetch_add(&pool.ticket, 1); /* who sleeps may sleep on */
    }
    pthread_mutex_unlock(&pool.caller);
}

void tmac_pool_settle(void)
{
    pthread_mutex_lock(&pool.caller);
    close_ticket();
    pthread_mutex_unlock(&pool.caller);
}
