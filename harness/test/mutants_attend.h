/* mutants_attend.h - attention over somebody's choice of rows. */
#ifndef DSV4_MUTANTS_ATTEND_H
#define DSV4_MUTANTS_ATTEND_H

#include "mutants.h"

/* The rows that token i of the block sees, into out; returns how many. */
typedef int64_t (*see_fn)(const dsv4_attention_args *a, int64_t i, const float **out);

typedef struct {
    double scale;    /* times 1/sqrt(d) */
    double sinks;    /* how often the sink is counted */
    bool first_sink; /* head 0's sink for every head */
} attend_options;

/* options NULL = as it should be. */
bool attend(const dsv4_attention_args *a, see_fn see, const attend_options *options, float *out);

/* Window rows first .. last as far as they are kept; compressed rows first .. limit-1 (those of the
 * indexer's choice, if there is one). Both return how many they wrote. */
int64_t see_window(const dsv4_attention_args *a, int64_t first, int64_t last, const float **out);
int64_t see_rows(const dsv4_attention_args *a, int64_t i, int64_t first, int64_t limit,
                 const float **out);
int64_t see_right(const dsv4_attention_args *a, int64_t i, const float **out);

#endif
