/* shadow.c - the modes of a run: free, the engine's own values all the way; shadow, golden's values
 * in place of every tap once it is compared, so that each error is the local one of its block; or
 * both, for the two curves of a report. */
#include <stdlib.h>
#include <string.h>

#include "runner.h"

static const char *const names[] = {"free", "shadow", "both"};

bool run_mode_parse(const char *text, run_mode *out)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (run_mode)i;
            return true;
        }
    return false;
}

const char *run_mode_name(run_mode m)
{
    return names[m];
}

/* Does golden hold every tap's input at every position, so that nothing of the engine's own is
 * carried from token to token? One layer speaks for all: files are made with one list. */
static dsv4_status holds_every_position(const vec_file *golden, const vec_case *c, bool *out,
                                        dsv4_error *err)
{
    static const dsv4_tap_id carried[] = {DSV4_TAP_STREAMS, DSV4_TAP_KV, DSV4_TAP_ATTN_NORM};
    *out = true;
    for (size_t i = 0; i < sizeof carried / sizeof *carried && *out; i++) {
        vec_tap *t = NULL;
        dsv4_status status = vec_tap_open(golden, c, carried[i], 0, &t, err);
        if (status != DSV4_OK)
            return status;
        *out = t != NULL && t->n_rows >= c->context;
        vec_tap_close(t);
    }
    return DSV4_OK;
}

static dsv4_status note_coverage(const vec_file *golden, const run_options *o, results *out,
                                 dsv4_error *err)
{
    size_t whole = 0, n = 0;
    for (size_t i = 0; i < vec_case_count(golden); i++) {
        const vec_case *c = vec_case_at(golden, i);
        bool every = false;
        if (!case_admitted(c, o->case_glob))
            continue;
        dsv4_status status = holds_every_position(golden, c, &every, err);
        if (status != DSV4_OK)
            return status;
        n++;
        whole += every;
    }
    if (!results_note(out,
                      "shadow: %zu of %zu cases of %s hold every position, so that every block's "
                      "input is golden's; in the others the positions between the sampled ones "
                      "carry the engine's own rows",
                      whole, n, vec_path(golden)))
        return dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
    return DSV4_OK;
}

/* ---- a recorded run and a model ---------------------------------------------------------------
 */

/* The reference was judged by the recorded run: the other way round it is the run that is judged.
 */
static void turn_round(result *r)
{
    double keep = r->expected;
    r->expected = r->actual;
    r->actual = keep;
}

/* In place of what the comparison with golden says: the failure that only the local one shows. */
static void take_local(result *r, const result *s)
{
    r->worst_row = s->worst_row;
    r->worst_position = s->worst_position;
    r->max_abs = s->max_abs;
    r->max_position = s->max_position;
    r->max_index = s->max_index;
    r->expected = s->expected;
    r->actual = s->actual;
    r->rel_l2 = s->rel_l2;
    r->budget = s->budget;
    r->budget_fail = s->budget_fail;
    r->reason = s->reason;
}

/* The local errors beside the free ones, for the results from `added` on; what fails only where its
 * input is golden's (dump: the recorded run's own) fails. Both come in the same order, but for what
 * a second look added. */
static void join(results *out, size_t added, results *local, bool dump)
{
    size_t at = 0;
    for (size_t i = added; i < out->count && local->count > 0; i++) {
        result *r = &out->items[i];
        for (size_t tried = 0; tried < local->count; tried++) {
            result *s = &local->items[(at + tried) % local->count];
            if (s->layer != r->layer || s->tap != r->tap || strcmp(s->case_name, r->case_name) != 0)
                continue;
            at = (at + tried + 1) % local->count;
            r->rel_l2_shadow = s->rel_l2;
            r->verdict_shadow = s->verdict;
            if (s->verdict > r->verdict && s->verdict != VERDICT_SKIPPED) {
                char text[512];
                if (dump) {
                    turn_round(s);
                    take_local(r, s);
                }
                snprintf(text, sizeof text, "%s: relative L2 %.3g; %.300s",
                         dump ? "held against the reference on this run's own streams of the layer "
                                "before"
                              : "with golden's input",
                         s->rel_l2, s->note != NULL ? s->note : "beyond its budget");
                free(r->note);
                r->note = text_copy(text);
                r->verdict = s->verdict;
                r->block = s->block;
            }
            break;
        }
    }
}

static dsv4_status note_local(const vec_file *golden, const run_options *o, results *out,
                              dsv4_error *err)
{
    const vec_file *dump = engine_dump(o->e);
    size_t whole = 0, n = 0;
    for (size_t i = 0; i < vec_case_count(dump); i++) {
        const vec_case *c = vec_case_at(dump, i);
        bool every = true;
        if (!case_admitted(c, o->case_glob) || vec_case_find(golden, c->name) == NULL)
            continue;
        for (int l = 0; l < o->model->config.num_hidden_layers && every; l++) {
            vec_tap *t = NULL;
            dsv4_status status = vec_tap_open(dump, c, DSV4_TAP_STREAMS, l, &t, err);
            if (status != DSV4_OK)
                return status;
            every = t != NULL && t->n_rows >= c->context;
            vec_tap_close(t);
        }
        n++;
        whole += every;
    }
    if (!results_note(
            out,
            "layer by layer: each layer of the model was computed from the dump's own streams of "
            "the layer before; %zu of %zu cases hold those of every position, so that an "
            "error there is that layer's; in the others the positions between are the "
            "reference's own",
            whole, n))
        return dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
    return DSV4_OK;
}

/* The reference on the streams of a recorded run, layer by layer: each layer works on the run's
 * streams of the layer before, so that what it computes otherwise is that layer's own fault. */
static dsv4_status run_local(const vec_file *golden, const dsv4_config *config,
                             const run_options *o, results *out, size_t added, dsv4_error *err)
{
    run_options local = *o;
    results found;
    const dsv4_ops ops = engine_quick_ops();
    const char *a = vec_attribute(golden, "weights_sha256");
    const char *b = vec_attribute(engine_dump(o->e), "weights_sha256");
    if (o->weights != WEIGHTS_EXACT || (a != NULL && b != NULL && *b != '\0' && strcmp(a, b) != 0))
        return DSV4_OK;
    local.tap_glob = "streams|logits|mtp/logits";
    local.shadow = local.local = true;
    local.replay = local.share = false;
    local.no_causes = true;
    dsv4_status status = engine_from_ops("local", o->model, &ops, o->numerics, &local.e, err);
    results_init(&found);
    if (status == DSV4_OK)
        status = run_cases(engine_dump(o->e), config, &local, &found, err);
    if (status == DSV4_OK) {
        results_finish(out);
        const result *before = out->first_divergence;
        join(out, added, &found, true);
        results_finish(out);
        if (out->first_divergence != before) /* causes were told of another place */
            results_drop_causes(out);
        status = note_local(golden, o, out, err);
    }
    results_free(&found);
    engine_close(local.e);
    return status;
}

dsv4_status run_cases_mode(const vec_file *golden, const dsv4_config *config, const run_options *o,
                           run_mode mode, results *out, dsv4_error *err)
{
    run_options local = *o;
    size_t added = out->count;
    results shadow;
    dsv4_status status = DSV4_OK;
    local.shadow = true;
    if (mode == MODE_SHADOW)
        status = run_cases(golden, config, &local, out, err);
    else
        status = run_cases(golden, config, o, out, err);
    if (status == DSV4_OK && mode != MODE_FREE)
        status = note_coverage(golden, o, out, err);
    if (status == DSV4_OK && mode == MODE_FREE && engine_is_dump(o->e) && o->model != NULL)
        status = run_local(golden, config, o, out, added, err);
    if (status != DSV4_OK || mode != MODE_BOTH)
        return status;
    results_init(&shadow);
    status = run_cases(golden, config, &local, &shadow, err);
    if (status == DSV4_OK)
        join(out, added, &shadow, false);
    results_free(&shadow);
    return status;
}
