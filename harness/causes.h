/* causes.h - what a wrong tap looks like, and which known mistake looks so. Private to the
 * harness. */
#ifndef DSV4_CAUSES_H
#define DSV4_CAUSES_H

#include "judge_private.h"
#include "runner.h"

/* ---- facts: what is true of the first divergence ----------------------------------------------
 */

enum { FACT_NAME = 40, FACT_TEXT = 200, MAX_FACTS = 160 };

typedef struct {
    char name[FACT_NAME]; /* "turn:half-split", "kind:csa" */
    char text[FACT_TEXT]; /* the measurement behind it; "" = plain from the results */
} fact;

typedef struct {
    fact list[MAX_FACTS];
    size_t n;
} facts;

void facts_add(facts *f, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
const fact *facts_find(const facts *f, const char *name);

/* detect.c: facts from the kept rows alone; needs no model. */
void detect_values(const judge *j, const slot *s, dsv4_tap_id id, int layer, facts *f);

/* detect_rounding.c: which other rule makes the engine's rounded values of its unrounded ones. */
void detect_rounding(const judge *j, const slot *s, dsv4_tap_id id, facts *f);

/* detect_turns.c: which rotation the engine made of a rotated tap. */
void detect_turns(const judge *j, const slot *s, dsv4_tap_id id, int layer, facts *f);

/* ---- causes ------------------------------------------------------------------------------------
 */

/* A line of causes.tsv. */
typedef struct {
    char *id, *taps, *when, *sentence, *reference;
} cause_line;

typedef struct {
    cause_line *lines;
    size_t count;
} cause_table;

/* The table built into the program, checked: five columns, known terms. */
dsv4_status causes_load(cause_table *out, dsv4_error *err);
void causes_free(cause_table *t);
/* The lines that fit, the ones with measured evidence first, then the most particular ones. */
size_t causes_match(const cause_table *t, dsv4_tap_id tap, const facts *f, const cause_line **out,
                    size_t most);

/* The sentences that fit the facts, up to three, into out. DSV4_SHOW_FACTS prints the facts. */
dsv4_status causes_tell(dsv4_tap_id tap, const facts *f, results *out, dsv4_error *err);

/* What the failing case ran on: the cases that shared its run, up to itself, and the chunk. */
typedef struct {
    const judge *j;
    const run_options *o;
    const result *first; /* the failing result of j's case */
    const vec_case *const *chain;
    size_t n_chain;
    int chunk;
    double started; /* now_seconds() */
} cause_question;

/* Replaces out's causes by those of `first`. Tries hypotheses where there is a model to try them
 * on. */
dsv4_status causes_find(const cause_question *q, results *out, dsv4_error *err);

#endif
