/* causes_state.h - what of a session was kept or lost: another request before, or a save and a
 * restore in between. Private to the harness. */
#ifndef DSV4_CAUSES_STATE_H
#define DSV4_CAUSES_STATE_H

#include "causes.h"

/* What was done with the session: `other` was appended first and the session reset (cut = 0); or
 * tokens [0, cut), saved, `other` appended, restored. Then the rest of tokens [n]. */
typedef struct {
    const dsv4_model *model;
    dsv4_numerics numerics;
    const int32_t *tokens, *other;
    int64_t n, n_other, cut;
    int chunk;
    bool mtp; /* the session had an MTP layer */
} state_schedule;

/* Rows [n_rows][width] of a tap that should have come, and those that came. */
typedef struct {
    dsv4_tap_id tap;
    int layer;
    int64_t n_rows, width;
    const int64_t *positions;
    const void *expected, *actual;
} state_rows;

/* Replaces out's causes by what the reference's own session says, once parts of its state are kept
 * or lost as known mistakes would. */
dsv4_status causes_find_state(const state_schedule *w, const state_rows *rows, results *out,
                              dsv4_error *err);

#endif
