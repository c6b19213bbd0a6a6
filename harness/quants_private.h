/* quants_private.h - what the checks of weight formats share. */
#ifndef DSV4_QUANTS_PRIVATE_H
#define DSV4_QUANTS_PRIVATE_H

#include "harness/quants.h"

/* A run over the formats. */
typedef struct {
    const char *path;
    const quants_file *file;
    const budget_table *budgets;
    dsv4_error *err;
} quants_context;

/* The line for @quants/<what>/<format>[/<case>]; its absence is an error. */
dsv4_status quants_budget(const quants_context *k, const char *what, const char *format,
                          const char *case_name, const budget **out);

/* Whether no diagnosis has named a cause so far: another one may. */
bool quants_unnamed(const quants_outcome *o);

/* Where rows come from, for messages. */
typedef struct {
    const quants_type *type; /* golden, or NULL */
    const int64_t *cases;    /* the case of each block of type->case_rows rows; NULL = in order */
    const char *definition;  /* name of a defined case */
} quants_place_of;
void quants_place(const void *ctx, int64_t row, char *text, size_t size);

/* ==== quants_encode.c ======================================================================== */

typedef enum { ENCODED, REFUSED, OVERRUN } quants_encoding;

/* Encodes n rows into `out`, whose scales may be shared between rows (FP8), and decodes them. */
dsv4_status quants_encode_rows(const quants_context *k, const dsv4_format *f, const float *x,
                               int64_t n, const float *importance, quants_rows *out,
                               quants_encoding *how);
/* Every golden case of a type; and one case of the definition. Both add to the outcome. */
dsv4_status quants_check_encode(const quants_context *k, const dsv4_format *f, const quants_type *t,
                                const char *tie_rule, quants_outcome *o);
dsv4_status quants_check_defined_encode(const quants_context *k, const dsv4_format *f,
                                        quants_case *c, const char *tie_rule, quants_outcome *o);

/* ==== quants_dot.c =========================================================================== */

/* What our decode makes of the rows: [n][512], freed with free(). */
dsv4_status quants_our_values(const dsv4_format *f, const quants_rows *rows, float **out,
                              dsv4_error *err);
/* Golden products with float activations; the same of defined rows with a fixed ramp. */
dsv4_status quants_check_dot(const quants_context *k, const dsv4_format *f, const quants_type *t,
                             const float *ours, quants_outcome *o);
dsv4_status quants_check_defined_dot(const quants_context *k, const dsv4_format *f,
                                     const quants_rows *rows, quants_outcome *o);
/* Golden products with rounded activations; act_error: their distance from the exact ones. */
dsv4_status quants_check_dot_act(const quants_context *k, const dsv4_format *f,
                                 const quants_type *t, const float *ours, quants_outcome *o,
                                 double *act_error);

#endif
