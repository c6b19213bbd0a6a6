/* hypotheses_sweeps.c - mistakes with a number in them: tried with each of a range, once the usual
 * ones do not fit. */
#include <stdlib.h>

#include "hypotheses.h"

#define SWEEP(name, field, value)                                                                  \
    static void name(trial *t)                                                                     \
    {                                                                                              \
        t->m.field = value;                                                                        \
    }
SWEEP(window_by, window_more, t->param)
SWEEP(rows_by, rows_late, t->param)
SWEEP(skip_by, rows_skip, t->param)
SWEEP(sinks_by, sinks, t->param)
SWEEP(passes_of, sinkhorn_passes, t->param)
SWEEP(slot_lost, expert_slot, t->param)
SWEEP(hash_by, hash_offset, t->param)
SWEEP(tile_of, pick_tile, 1 << t->param)

static void groups_by(trial *t)
{
    t->m.groups = GROUPS_ROTATED;
    t->m.groups_by = t->param;
    t->failed = t->failed || t->param >= t->model.config.o_groups;
}

static void fewer_by(trial *t)
{
    t->m.pick = PICK_FEWER;
    t->m.pick_fewer = t->param;
    t->failed = t->failed || t->param >= t->model.config.index_topk;
}

static void decode_fewer_by(trial *t)
{
    fewer_by(t);
    t->m.decode_only = true;
}

static void decode_window_by(trial *t)
{
    t->m.decode_only = true;
    t->m.window_more = t->param;
}

static void decode_rows_left(trial *t)
{
    t->m.decode_only = true;
    t->m.window_of_step = true;
    t->m.window_rows_left = t->param;
    t->failed = t->failed || t->param >= t->model.config.sliding_window;
}

static void experts_by(trial *t)
{
    dsv4_layer *l = trial_layer(t);
    dsv4_tensor **list[] = {&l->w1, &l->w2, &l->w3};
    for (int i = 0; i < 3; i++)
        *list[i] = trial_shifted(t, *list[i], t->param);
}

static void down_by(trial *t)
{
    trial_layer(t)->w2 = trial_shifted(t, trial_layer(t)->w2, t->param);
}

const sweep sweeps[] = {
    {{"sink-twice", "attn_heads", false, sinks_by}, 2, 8},
    {{"window-other", "attn_heads", false, window_by}, -8, 8},
    {{"rows-moved", "attn_heads", false, rows_by}, -8, 8},
    {{"rows-skip", "attn_heads", false, skip_by}, 2, 4},
    {{"few-passes", "hc_*_comb", false, passes_of}, 2, 32},
    {{"groups-rotated", "o_lora", false, groups_by}, 1, 15},
    {{"pick-fewer", "indexer_topk", false, fewer_by}, 3, 16},
    {{"pick-first-tile", "indexer_topk", false, tile_of}, 1, 10},
    {{"hash-neighbour", "router_*", false, hash_by}, -4, 4},
    {{"expert-slot-lost", "routed_out", false, slot_lost}, 1, 8},
    {{"experts-shifted", "routed_out", false, experts_by}, -4, 4},
    {{"down-shifted", "routed_out", false, down_by}, -4, 4},
    {{"decode-window-short", "attn_heads|streams|logits", true, decode_window_by}, -8, 8},
    {{"decode-one-row", "attn_heads|streams|logits", true, decode_rows_left}, 2, 16},
    {{"decode-pick-fewer", "indexer_topk|streams|logits", true, decode_fewer_by}, 3, 16},
    {{NULL, NULL, false, NULL}, 0, 0},
};
