/* What a program says when a page of a mapped file is gone: without it the kernel ends the process with "Bus error". */
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "tmac.h"

static char text[1024]; /* a signal handler may only use what is there already */
static size_t length;

static atomic_flag told = ATOMIC_FLAG_INIT;

static void tell(int number)
{
    (void)number;
    while (atomic_flag_test_and_set(&told)) pause(); /* another thread says it, and ends us all */
    ssize_t written = write(STDERR_FILENO, text, length);
    (void)written;
    _exit(1);
}

int tmac_explain_bus_errors(const char *message)
{
    if (!message || strlen(message) > sizeof text - 2) return TMAC_ERR_ARGUMENT;
    length = strlen(message) + 1;
    memcpy(text, message, length - 1);
    text[length - 1] = '\n';
    return signal(SIGBUS, tell) == SIG_ERR ? TMAC_ERR_ARGUMENT : TMAC_OK;
}
