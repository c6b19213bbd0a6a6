/* status.c - error messages and checked allocation. */
#include "dsv4.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

dsv4_status dsv4_fail(dsv4_error *err, dsv4_status status, const char *fmt, ...)
{
    if (err == NULL)
        return status;
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, args);
    va_end(args);
    /* One message is one line, whatever bytes a file's own names hold. */
    for (char *p = err->text; *p != '\0'; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    return status;
}

static _Atomic long fail_countdown; /* threads allocate too */

void dsv4_alloc_fail_at(long n)
{
    fail_countdown = n;
}

bool dsv4_alloc_fails(void)
{
    return fail_countdown > 0 && --fail_countdown == 0;
}

static void *allocate(size_t count, size_t size, bool zeroed, const char *what, dsv4_error *err)
{
    void *p = NULL;
    size_t n = count > 0 ? count : 1, each = size > 0 ? size : 1;
    if (dsv4_alloc_fails())
        goto failed;
    if (n > SIZE_MAX / each)
        goto failed;
    p = zeroed ? calloc(n, each) : malloc(n * each);
    if (p != NULL)
        return p;
failed:
    dsv4_fail(err, DSV4_E_MACHINE, "out of memory: %zu x %zu bytes for %s", count, size, what);
    return NULL;
}

void *dsv4_alloc(size_t count, size_t size, const char *what, dsv4_error *err)
{
    return allocate(count, size, true, what, err);
}

void *dsv4_alloc_unset(size_t count, size_t size, const char *what, dsv4_error *err)
{
    return allocate(count, size, false, what, err);
}
