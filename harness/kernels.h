/* kernels.h - the checker of operators: each pointer of a table that differs from the scalar one is
 * called with hostile inputs at awkward shapes, in a process of its own, and compared. */
#ifndef DSV4_KERNELS_H
#define DSV4_KERNELS_H

#include <stdio.h>

#include "harness.h"
#include "optimized/optimized.h"

/* ---- what a run found, for reports ---------------------------------------------------------- */

enum { KERNELS_MOST_FAILURES = 8, KERNELS_MOST_TIMES = 64, KERNELS_NAME = 160 };

typedef struct {
    char name[KERNELS_NAME]; /* of the case */
    char what[256];
    uint64_t seed;
} kernels_failure;

typedef struct {
    char name[KERNELS_NAME];
    double seconds[3], scalar[3]; /* quartiles of a call: ours, the scalar operator's */
} kernels_time;

/* One kernel: an operator, or a dot product, of one level. */
typedef struct {
    const char *name, *level; /* "linear", "dot_q8_0_avx512"; "avx2" */
    const char *block;        /* the room to look in, as in results */
    long cases, failures, crashes;
    double worst; /* largest difference, in units of its tolerance */
    char worst_name[KERNELS_NAME];
    int n_failures, n_times; /* of those listed here; the rest is only counted */
    kernels_failure failed[KERNELS_MOST_FAILURES];
    kernels_time times[KERNELS_MOST_TIMES]; /* --bench */
} kernels_item;

typedef struct {
    char *argv;
    const char *machine; /* "avx512 vnni vbmi bf16" */
    uint64_t seed;
    int repeat;
    bool bench;
    double seconds;
    bool lost; /* no memory for an item: what is here is not all */
    kernels_item *items;
    size_t count, capacity;
} kernels_found;

void kernels_found_free(kernels_found *f);
/* The page of the results r of what was found; with a chart of the times, if they were taken. */
dsv4_status kernels_page(const char *path, const kernels_found *f, const results *r,
                         dsv4_error *err);
/* "dsv4check kernels --impl avx2 --filter 'linear/...' --seed 7": runs one case again. */
void kernels_replay(char *text, size_t size, const kernels_item *item, const char *name,
                    uint64_t seed);

/* ---- a run ---------------------------------------------------------------------------------- */

enum { KERNELS_TIMEOUT = 300 };

typedef struct {
    uint64_t seed;
    int repeat;           /* seeds seed, seed + 1, ...; 0 = 1 */
    const char *filter;   /* glob over case names, "linear/q8_0*"; NULL = all */
    const char *impl;     /* level name; NULL = every level of this machine */
    int timeout;          /* seconds of a case, then it has failed; 0 = KERNELS_TIMEOUT */
    bool bench;           /* time the large cases instead of checking */
    bool quiet;           /* failures and the last line only */
    FILE *out;            /* where the lines go */
    progress *bar;        /* NULL = nobody watches */
    kernels_found *found; /* NULL = nobody asks */
} kernels_options;

typedef struct {
    int kernels; /* pointers that differ from the scalar ones */
    long cases, failures;
    int failed_kernels;
    int crashes; /* of the failures */
} kernels_totals;

/* One operator of a table against the same operator of the scalar table. `label` names the table
 * in lines ("avx2"). Adds to *totals; returns whether all its cases passed (true if the filter let
 * none through). */
bool kernels_check(const char *label, const dsv4_ops *ref, const dsv4_ops *impl, int op,
                   const kernels_options *o, kernels_totals *totals);
/* One dot product kernel against the format's own. */
bool kernels_check_dot(const dsv4_dot_kernel *kernel, const kernels_options *o,
                       kernels_totals *totals);
/* The tables of this machine, one level more at a time, then the dot products. */
void kernels_check_all(const kernels_options *o, kernels_totals *totals);
/* How many kernels such a run visits, whatever the filter lets through. */
size_t kernels_count(const kernels_options *o);
/* One line for each kernel of this program, and whether this machine runs it. */
void kernels_list(FILE *out);

int cmd_kernels(int argc, char **argv);

#endif
