/* judge_golden.c - when the judge reads golden data: a case at a time where an engine computes in
 * between, tap by tap where there is nothing but another recorded run. */
#include "harness/judge_private.h"

bool judge_decides(const judge *j, dsv4_tap_id id)
{
    return j->o.shadow || dsv4_tap_is_int(id) || dsv4_tap_is_row(id) || id == DSV4_TAP_KV ||
           id == DSV4_TAP_INDEXER_Q;
}

dsv4_status judge_read_ahead(judge *j, int64_t *loaded, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    double started = now_seconds();
    j->ahead = true;
    for (int l = -1; l < j->layers && status != DSV4_E_MACHINE; l++)
        for (int i = 0; i < DSV4_TAP_COUNT && status != DSV4_E_MACHINE; i++) {
            dsv4_tap_id id = (dsv4_tap_id)i;
            slot *s = judge_slot(j, l, id);
            status = vec_tap_open(j->golden, j->c, id, l, &s->golden, err);
            s->looked_up = status == DSV4_OK;
            bool used = name_matches(j->o.taps, dsv4_tap_name(id)) || judge_decides(j, id);
            if (s->golden != NULL && used) {
                status = vec_tap_load(s->golden, err);
                *loaded += s->golden->n_rows * s->golden->row_len * (int64_t)sizeof(float);
            }
        }
    double took = now_seconds() - started;
    j->read += took;
    j->heard += j->listening ? 0 : took;
    return status == DSV4_E_MACHINE ? status : DSV4_OK;
}

dsv4_status judge_load(judge *j, int64_t *loaded, dsv4_error *err)
{
    return j->ahead || j->o.dump ? DSV4_OK : judge_read_ahead(j, loaded, err);
}

dsv4_status judge_look_up(judge *j, slot *s, dsv4_tap_id id, int layer)
{
    if (s->looked_up)
        return DSV4_OK;
    double started = now_seconds();
    dsv4_status status = vec_tap_open(j->golden, j->c, id, layer, &s->golden, &j->err);
    double took = now_seconds() - started;
    j->read += took;
    j->heard += j->listening ? 0 : took;
    return status;
}

void judge_rest(judge *j)
{
    for (int i = 0; j != NULL && i < (j->layers + 1) * DSV4_TAP_COUNT; i++)
        vec_tap_unload(j->slots[i].golden);
}
