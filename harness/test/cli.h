/* cli.h - runs the built program in a folder of its own, and spoils the files it is given. */
#ifndef DSV4_TEST_CLI_H
#define DSV4_TEST_CLI_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <hdf5.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness/harness.h"

#define STRESS DSV4_VECTORS "/stress"
#define GOLDEN DSV4_VECTORS "/stress-hf-f32.h5"
#define GOLDEN_QAT DSV4_VECTORS "/stress-official-qat-f32.h5"
#define CASE "ctx00005" /* short, and the file holds every tap of it */

static char folder[] = "/tmp/dsv4-cli-XXXXXX";

/* DSV4_FAST_TESTS=1: fewer runs, for builds that are slow (sanitizers). */
static inline bool fast(void)
{
    const char *value = getenv("DSV4_FAST_TESTS");
    return value != NULL && strcmp(value, "1") == 0;
}

/* A path in the folder; good until the fourth call after it. */
static inline const char *in(const char *name)
{
    static char text[4][256];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(text[turn], sizeof text[turn], "%s/%s", folder, name);
    return text[turn];
}

static inline bool exists(const char *name)
{
    struct stat s;
    return lstat(in(name), &s) == 0;
}

/* ---- running --------------------------------------------------------------------------------- */

static char run_out[1 << 16], run_err[1 << 14], run_line[2048]; /* of the last run */
static rlim_t run_limit = RLIM_INFINITY;                        /* bytes that a file may grow to */

static inline void read_text(const char *file, char *text, size_t size)
{
    FILE *f = fopen(file, "rb");
    size_t n = f != NULL ? fread(text, 1, size - 1, f) : 0;
    text[n] = '\0';
    if (f != NULL)
        fclose(f);
}

/* In the child: files in the places of the three streams, then the program. */
static inline void become(char *const *argv, const char *out, const char *err)
{
    int in_fd = open("/dev/null", O_RDONLY);
    int out_fd = open(out, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    int err_fd = open(err, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (dup2(in_fd, 0) < 0 || dup2(out_fd, 1) < 0 || dup2(err_fd, 2) < 0)
        _exit(126);
    if (run_limit != RLIM_INFINITY) {
        signal(SIGXFSZ, SIG_IGN); /* a write fails, as on a full disk */
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){run_limit, run_limit});
    }
    execv(DSV4CHECK_BIN, argv);
    _exit(127);
}

/* Runs dsv4check; the last argument is NULL. Returns the exit code. */
static inline int run(const char *first, ...)
{
    char *argv[32] = {(char *)(uintptr_t)DSV4CHECK_BIN};
    char out[64], err[64];
    int n = 1, status = 0, used = 0;
    va_list args;
    va_start(args, first);
    for (const char *a = first; a != NULL && n < 31; a = va_arg(args, const char *)) {
        argv[n++] = (char *)(uintptr_t)a;
        used += snprintf(run_line + used, used < 1900 ? sizeof run_line - (size_t)used : 0,
                         " %.100s", a);
    }
    va_end(args);
    snprintf(out, sizeof out, "%s/stdout", folder);
    snprintf(err, sizeof err, "%s/stderr", folder);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        become(argv, out, err);
    assert_int_equal(waitpid(child, &status, 0), child);
    read_text(out, run_out, sizeof run_out);
    read_text(err, run_err, sizeof run_err);
    if (!WIFEXITED(status))
        fail_msg("dsv4check%s: killed by signal %d\n%s", run_line, WTERMSIG(status), run_err);
    return WEXITSTATUS(status);
}

/* The last run's exit code; a failure (2, 3) says why in one line that holds all of `says`. */
static inline void check(int code, int expected, const char *says, const char *too)
{
    size_t n = strlen(run_err);
    if (code != expected)
        fail_msg("dsv4check%s: expected exit %d, found %d\n%s%s", run_line, expected, code, run_out,
                 run_err);
    if (expected < 2 && n > 0)
        fail_msg("dsv4check%s: expected no message, found: %s", run_line, run_err);
    if (expected >= 2 &&
        (strncmp(run_err, "dsv4check: ", 11) != 0 || strchr(run_err, '\n') != run_err + n - 1))
        fail_msg("dsv4check%s: expected one line, found: %s", run_line, run_err);
    const char *where = expected < 2 ? run_out : run_err;
    if ((says != NULL && strstr(where, says) == NULL) ||
        (too != NULL && strstr(where, too) == NULL))
        fail_msg("dsv4check%s: expected '%s' and '%s' in: %s", run_line, says ? says : "",
                 too ? too : "", where);
}

/* ---- files ----------------------------------------------------------------------------------- */

static inline void write_file(const char *name, const char *data, size_t bytes)
{
    FILE *f = fopen(in(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

static inline char *read_file(const char *file, size_t *bytes)
{
    FILE *f = fopen(file, "rb");
    struct stat s;
    assert_non_null(f);
    assert_int_equal(fstat(fileno(f), &s), 0);
    char *data = malloc((size_t)s.st_size + 1);
    assert_non_null(data);
    *bytes = fread(data, 1, (size_t)s.st_size, f);
    data[*bytes] = '\0';
    fclose(f);
    return data;
}

/* The first `bytes` of a file (all if it has fewer) as `name` in the folder. */
static inline void copy_file(const char *from, const char *name, size_t bytes)
{
    size_t n;
    char *data = read_file(from, &n);
    write_file(name, data, n < bytes ? n : bytes);
    free(data);
}

/* The results of the last run as JSON, from the file `name`. */
static inline json_t *results_of(const char *name)
{
    json_error_t where;
    json_t *root = json_load_file(in(name), JSON_REJECT_DUPLICATES, &where);
    if (root == NULL)
        fail_msg("%s: line %d: %s", name, where.line, where.text);
    return root;
}

static inline int64_t number_at(const json_t *root, const char *object, const char *key)
{
    const json_t *v = json_object_get(object ? json_object_get(root, object) : root, key);
    assert_true(json_is_integer(v));
    return json_integer_value(v);
}

static inline const char *text_at(const json_t *root, const char *object, const char *key)
{
    const char *s =
        json_string_value(json_object_get(object ? json_object_get(root, object) : root, key));
    if (s == NULL)
        fail_msg("%s: no string", key);
    return s;
}

/* ---- vector files ---------------------------------------------------------------------------- */

static inline hid_t h5_open(const char *name)
{
    hid_t f = H5Fopen(in(name), H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(f >= 0);
    return f;
}

/* Replaces element `at` of a dataset of floats; returns what was there. */
static inline float h5_change(const char *name, const char *dataset, size_t at, float value)
{
    hid_t f = h5_open(name), d = H5Dopen2(f, dataset, H5P_DEFAULT);
    assert_true(d >= 0);
    hid_t space = H5Dget_space(d);
    size_t n = (size_t)H5Sget_simple_extent_npoints(space);
    float *data = malloc(n * sizeof *data), old;
    assert_non_null(data);
    assert_true(at < n);
    assert_true(H5Dread(d, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    old = data[at];
    data[at] = value;
    assert_true(H5Dwrite(d, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    free(data);
    H5Sclose(space);
    H5Dclose(d);
    assert_true(H5Fclose(f) >= 0);
    return old;
}

static inline void h5_delete(const char *name, const char *object)
{
    hid_t f = h5_open(name);
    assert_true(H5Ldelete(f, object, H5P_DEFAULT) >= 0);
    assert_true(H5Fclose(f) >= 0);
}

/* Zeros in another shape or type in a dataset's place. */
static inline void h5_reshape(const char *name, const char *dataset, hid_t type, int ndim,
                              const hsize_t *dims)
{
    hid_t f = h5_open(name), space = H5Screate_simple(ndim, dims, NULL);
    assert_true(H5Ldelete(f, dataset, H5P_DEFAULT) >= 0);
    hid_t d = H5Dcreate2(f, dataset, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(d >= 0);
    H5Dclose(d);
    H5Sclose(space);
    assert_true(H5Fclose(f) >= 0);
}

/* A root attribute; text NULL removes it. */
static inline void h5_attribute(const char *name, const char *attribute, const char *text)
{
    hid_t f = h5_open(name);
    if (H5Aexists(f, attribute) > 0)
        assert_true(H5Adelete(f, attribute) >= 0);
    if (text != NULL) {
        hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
        H5Tset_size(type, H5T_VARIABLE);
        hid_t a = H5Acreate2(f, attribute, type, space, H5P_DEFAULT, H5P_DEFAULT);
        assert_true(a >= 0 && H5Awrite(a, type, &text) >= 0);
        H5Aclose(a);
        H5Sclose(space);
        H5Tclose(type);
    }
    assert_true(H5Fclose(f) >= 0);
}

/* ---- the folder ------------------------------------------------------------------------------ */

static inline int cli_setup(void **state)
{
    (void)state;
    return mkdtemp(folder) != NULL ? 0 : -1;
}

/* Everything was put there by the test or by the program under test. */
static inline int cli_teardown(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command) == 0 ? 0 : -1;
}

#endif
