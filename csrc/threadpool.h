/* One fork-join thread pool. Knows nothing of what runs on it.
 *
 * tmac_parallel_for cuts [0, n) into one contiguous range per thread; a thread walks its own range forward in chunks of
 * `grain`, so that it reads memory as one stream, and when done takes chunks from the far end of another's. */
#ifndef TMAC_THREADPOOL_H
#define TMAC_THREADPOOL_H
#include <stddef.h>
#include <stdint.h>

enum { TMAC_MAX_THREADS = 256 };

/* Items [begin, end). thread: 0 .. n_threads - 1, the one that runs it (for scratch memory). */
typedef void (*tmac_task)(void *context, int32_t begin, int32_t end, int thread);

/* What workers do while no job is there: called with step 0, 1, 2, .. until it returns 0 or the next job is wanted, so a step
 * should take less than a microsecond. thread: 1 .. n_threads - 1. */
typedef int (*tmac_idle_step)(const void *context, int thread, int32_t step);

enum { TMAC_IDLE_CONTEXT = 64 };

/* Run with n_threads, the caller being one of them. 0, or -1 if threads could not be started (then fewer run). */
int tmac_pool_start(int n_threads);
int tmac_pool_size(void);
/* Returns when every item is done; concurrent callers take turns. Not from inside a task. In the child of a fork the
 * threads are started again. */
void tmac_parallel_for(int32_t n, int32_t grain, tmac_task task, void *context);
/* First item of a thread's own range of n. */
int32_t tmac_range_begin(int32_t n, int thread);
/* Return at once, and have the workers that are awake take steps until the next job. A copy of the context is kept, at most
 * TMAC_IDLE_CONTEXT bytes; what it points to may go after tmac_pool_settle. */
void tmac_pool_idle(tmac_idle_step step, const void *context, size_t bytes);
/* No worker is in an idle step any more when this returns, nor enters one. */
void tmac_pool_settle(void);
#endif
