/* device.c - device 0: opening it, its errors, its memory. */
#include "device.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "optimized/optimized.h"
#include "tables.h"

const uint64_t *cu_iq2_book_device(void);
const cu_iq2_tables *cu_iq2_tables_device(void);
void cu_launched(const char *op, int64_t size);
bool cu_overlaps(void);
int cu_built_for(void);
int cu_ask_built(int *room, int *arch); /* built.cu */
bool cu_launching(const char *op);

#ifdef DSV4_CUDA_MUTANTS
int dsv4_cuda_mutant;
bool cu_same_name(const char *a, const char *b);
bool cu_same_name(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}
#endif

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static dsv4_error first_error;
static bool failed;

void cu_book(const char *what, int64_t size, const char *why)
{
    pthread_mutex_lock(&lock);
    if (!failed)
        dsv4_fail(&first_error, DSV4_E_MACHINE, "cuda: %s (size %lld): %s", what, (long long)size,
                  why);
    failed = true;
    pthread_mutex_unlock(&lock);
}

bool cu_ok(int code, const char *what, int64_t size)
{
    if (code == cudaSuccess)
        return true;
    (void)cudaGetLastError(); /* told once: not by the next launch again */
    cu_book(what, size, cudaGetErrorString((cudaError_t)code));
    return false;
}

/* ---- launches by name: for benches, one thread ---------------------------------------------- */

static _Thread_local const char *label;
static struct {
    bool counts;
    const char *without;
    cu_launch_count list[CU_MOST_COUNTED];
    int n;
} watch;

void cu_label(const char *what)
{
    label = what;
}

bool cu_launching(const char *op)
{
    if (!watch.counts && watch.without == NULL)
        return true;
    const char *name = label != NULL ? label : op;
    int i = 0;
    while (i < watch.n && strcmp(watch.list[i].name, name) != 0)
        i++;
    if (watch.counts && i < CU_MOST_COUNTED) {
        watch.n = i < watch.n ? watch.n : i + 1;
        watch.list[i].name = name;
        watch.list[i].launches++;
    }
    size_t end = watch.without != NULL ? strcspn(watch.without, "*") : 0;
    return watch.without == NULL ||
           (watch.without[end] == '*' ? strncmp(name, watch.without, end) != 0
                                      : strcmp(name, watch.without) != 0);
}

void cu_launched(const char *op, int64_t size)
{
    cu_ok(cudaGetLastError(), label != NULL ? label : op, size);
}

void cu_count_launches(bool on)
{
    if (on) {
        memset(watch.list, 0, sizeof watch.list);
        watch.n = 0;
    }
    watch.counts = on;
}

int cu_counted(const cu_launch_count **list)
{
    *list = watch.list;
    return watch.n;
}

void cu_leave_out(const char *name)
{
    watch.without = name;
}

bool cu_failed(void)
{
    pthread_mutex_lock(&lock);
    bool yes = failed;
    pthread_mutex_unlock(&lock);
    return yes;
}

dsv4_status cu_take_error(dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    pthread_mutex_lock(&lock);
    if (failed)
        status = dsv4_fail(err, DSV4_E_MACHINE, "%s", first_error.text);
    failed = false;
    pthread_mutex_unlock(&lock);
    return status;
}

/* ---- opening -------------------------------------------------------------------------------- */

static struct {
    dsv4_status status;
    dsv4_error err;
    uint64_t *book;
    cu_iq2_tables *tables;
    int built_for;
} opened;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void open_once(void)
{
    int count = 0, major = 0;
    uint64_t book[256];
    static cu_iq2_tables tables;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || count == 0) {
        opened.status = dsv4_fail(&opened.err, DSV4_E_INPUT, "cuda: no device (%s)",
                                  e != cudaSuccess ? cudaGetErrorString(e) : "none found");
        return;
    }
    e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    if (e == cudaSuccess && major < 8) {
        opened.status =
            dsv4_fail(&opened.err, DSV4_E_INPUT,
                      "cuda: expected compute capability 8.0 or newer, found %d.x", major);
        return;
    }
#ifdef DSV4_CUDA_MUTANTS
    const char *number = getenv("DSV4_CUDA_MUTANT");
    dsv4_cuda_mutant = number != NULL ? atoi(number) : 0;
#endif
    cu_iq2_xxs_book(book);
    cu_iq2_xxs_words(tables.many, CU_IQ2_COPIES, CU_IQ2_COPIES);
    cu_iq2_xxs_words(tables.lanes, CU_IQ2_LANES, CU_IQ2_LANES);
    cu_iq2_xxs_words(tables.few, CU_IQ2_FEW, CU_IQ2_LANES);
    if (e == cudaSuccess)
        e = cudaMalloc((void **)&opened.book, sizeof book);
    if (e == cudaSuccess)
        e = cudaMalloc((void **)&opened.tables, sizeof tables);
    if (e == cudaSuccess)
        e = (cudaError_t)cu_ask_built((int *)(void *)opened.tables, &opened.built_for);
    if (e == cudaSuccess)
        e = cudaMemcpy(opened.book, book, sizeof book, cudaMemcpyHostToDevice);
    if (e == cudaSuccess)
        e = cudaMemcpy(opened.tables, &tables, sizeof tables, cudaMemcpyHostToDevice);
    if (e != cudaSuccess)
        opened.status = dsv4_fail(&opened.err, DSV4_E_MACHINE, "cuda: opening the device: %s",
                                  cudaGetErrorString(e));
}

dsv4_status cu_open(dsv4_error *err)
{
    pthread_once(&once, open_once);
    return opened.status == DSV4_OK ? DSV4_OK
                                    : dsv4_fail(err, opened.status, "%s", opened.err.text);
}

static _Thread_local bool apart;

void cu_keep_apart(bool on)
{
    apart = on;
}

bool cu_overlaps(void)
{
    return opened.built_for >= 900 && !apart;
}

int cu_built_for(void)
{
    return opened.built_for;
}

const uint64_t *cu_iq2_book_device(void)
{
    return opened.book;
}

const cu_iq2_tables *cu_iq2_tables_device(void)
{
    return opened.tables;
}

/* The driver does not survive a fork: a child asks, and its answer comes through a pipe. */
dsv4_status dsv4_cuda_probe(char *name, size_t size, dsv4_error *err)
{
    struct {
        dsv4_status status;
        char text[256];
    } answer = {DSV4_E_MACHINE, "cuda: the device gave no answer"};
    int ends[2], state;
    if (pipe(ends) != 0)
        return dsv4_fail(err, DSV4_E_MACHINE, "cuda: no pipe for asking the device");
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dsv4_error e = {""};
        struct cudaDeviceProp p;
        int driver = 0, runtime = 0;
        answer.status = cu_open(&e);
        snprintf(answer.text, sizeof answer.text, "%.255s", e.text);
        if (answer.status == DSV4_OK && cudaGetDeviceProperties(&p, 0) == cudaSuccess &&
            cudaDriverGetVersion(&driver) == cudaSuccess &&
            cudaRuntimeGetVersion(&runtime) == cudaSuccess)
            snprintf(answer.text, sizeof answer.text,
                     "%.128s, compute capability %d.%d, %d multiprocessors, %.1f GiB, driver CUDA "
                     "%d.%d, runtime %d.%d",
                     p.name, p.major, p.minor, p.multiProcessorCount,
                     (double)p.totalGlobalMem / 1073741824.0, driver / 1000, driver % 1000 / 10,
                     runtime / 1000, runtime % 1000 / 10);
        _exit(write(ends[1], &answer, sizeof answer) == (ssize_t)sizeof answer ? 0 : 1);
    }
    close(ends[1]);
    if (child > 0) {
        if (read(ends[0], &answer, sizeof answer) != (ssize_t)sizeof answer)
            answer.status = DSV4_E_MACHINE;
        waitpid(child, &state, 0);
    }
    close(ends[0]);
    if (answer.status != DSV4_OK)
        return dsv4_fail(err, answer.status, "%s", answer.text);
    if (name != NULL && size > 0)
        snprintf(name, size, "%s", answer.text);
    return DSV4_OK;
}

/* ---- memory --------------------------------------------------------------------------------- */

size_t cu_free_bytes(void)
{
    size_t available = 0, total = 0;
    return cudaMemGetInfo(&available, &total) == cudaSuccess ? available : 0;
}

void *cu_new(size_t bytes, const char *what, dsv4_error *err)
{
    void *p = NULL;
    size_t available = cu_free_bytes();
    cudaError_t e = cudaErrorMemoryAllocation;
    if (bytes <= available)
        e = cudaMalloc(&p, bytes > 0 ? bytes : 1);
    if (e == cudaSuccess)
        return p;
    (void)cudaGetLastError();
    dsv4_fail(err, DSV4_E_MACHINE, "cuda: %s: %.1f MB wanted, %.1f MB free on the device: %s", what,
              (double)bytes / 1048576.0, (double)available / 1048576.0, cudaGetErrorString(e));
    return NULL;
}

void cu_delete(void *p)
{
    if (p != NULL)
        cu_ok(cudaFree(p), "freeing memory", 0);
}

cu_stream cu_new_stream(dsv4_error *err)
{
    cudaStream_t s = NULL;
    cudaError_t e = cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    if (e == cudaSuccess)
        return s;
    (void)cudaGetLastError();
    dsv4_fail(err, DSV4_E_MACHINE, "cuda: a stream: %s", cudaGetErrorString(e));
    return NULL;
}

void cu_delete_stream(cu_stream s)
{
    if (s != NULL)
        cu_ok(cudaStreamDestroy(s), "freeing a stream", 0);
}

bool cu_wait(cu_stream s, const char *what)
{
    return cu_ok(cudaStreamSynchronize(s), what, 0);
}

bool cu_to_device(cu_stream s, void *to, const void *from, size_t bytes, const char *what)
{
    return cu_ok(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, s), what, (int64_t)bytes);
}

bool cu_from_device(cu_stream s, void *to, const void *from, size_t bytes, const char *what)
{
    return cu_ok(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, s), what, (int64_t)bytes);
}

bool cu_to_host(cu_stream s, void *to, const void *from, size_t bytes, const char *what)
{
    return cu_ok(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, s), what,
                 (int64_t)bytes) &&
           cu_wait(s, what);
}

bool cu_on_device(cu_stream s, void *to, const void *from, size_t bytes, const char *what)
{
    return cu_ok(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, s), what,
                 (int64_t)bytes);
}

bool cu_clear(cu_stream s, void *to, size_t bytes)
{
    return cu_ok(cudaMemsetAsync(to, 0, bytes, s), "clearing memory", (int64_t)bytes);
}
