/* mutants_state.c - state that is lost, stale or out of step: decode steps, later blocks, a second
 * request, save and restore. */
#include <stdlib.h>
#include <string.h>

#include "mutants.h"
#include "mutants_attend.h"

/* ---- decode: what a token sees ------------------------------------------------------------- */

static int64_t limit_of(const dsv4_attention_args *a, int64_t t)
{
    return a->ratio > 0 ? (t + 1) / a->ratio : 0;
}

static int64_t see_no_rows(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i;
    return see_window(a, t - a->window_size + 1, t, out);
}

static int64_t see_rows_of_prompt(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, t - a->window_size + 1, t, out);
    return n + see_rows(a, i, 0, limit_of(a, now.prompt - 1), out + n);
}

static int64_t see_last_of_prompt(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, first = t - a->window_size + 1;
    int64_t n = see_window(a, first > now.prompt - 1 ? first : now.prompt - 1, t, out);
    return n + see_rows(a, i, 0, limit_of(a, t), out + n);
}

static int64_t see_frozen_window(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, first = now.prompt - a->window_size + 1;
    int64_t n = see_window(a, first, now.prompt < t ? now.prompt : t, out);
    return n + see_rows(a, i, 0, limit_of(a, t), out + n);
}

static int64_t see_old_ring(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, t - a->window_size + 1, t - 1, out);
    return n + see_rows(a, i, 0, limit_of(a, t), out + n);
}

static int64_t see_short_window(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, t - a->window_size + 2, t, out);
    return n + see_rows(a, i, 0, limit_of(a, t), out + n);
}

#define DECODES(name)                                                                              \
    static bool attention_##name(const dsv4_attention_args *a, float *out)                         \
    {                                                                                              \
        return attend(a, decoding() ? see_##name : see_right, NULL, out);                          \
    }                                                                                              \
    static void plant_##name(plan *p)                                                              \
    {                                                                                              \
        p->ops.attention = attention_##name;                                                       \
    }
DECODES(no_rows)
DECODES(rows_of_prompt)
DECODES(last_of_prompt)
DECODES(frozen_window)
DECODES(old_ring)
DECODES(short_window)

static bool attention_no_sink(const dsv4_attention_args *a, float *out)
{
    const attend_options o = {.scale = 1, .sinks = decoding() ? 0 : 1};
    return attend(a, see_right, &o, out);
}

static void plant_decode_no_sink(plan *p)
{
    p->ops.attention = attention_no_sink;
}

static void topk_fewer(const float *scores, int64_t n, int k, int32_t *out)
{
    ref_topk(scores, n, k, out);
    if (decoding())
        out[k - 1] = out[k - 2] = -1;
}

static void plant_decode_fewer(plan *p)
{
    p->ops.topk = topk_fewer;
}

/* ---- decode: compressor, positions, experts ------------------------------------------------ */

static void pool_no_previous(const float *prev_kv, const float *prev_z, const float *kv,
                             const float *z, int ratio, int lanes, int dim, float *c)
{
    bool lost = decoding();
    ref_compressor_pool(lost ? NULL : prev_kv, lost ? NULL : prev_z, kv, z, ratio, lanes, dim, c);
}

/* Slots that were filled by the prompt are gone when a decode step completes the window. */
static void pool_tail_lost(const float *prev_kv, const float *prev_z, const float *kv,
                           const float *z, int ratio, int lanes, int dim, float *c)
{
    int64_t start = now.pos0 + 1 - ratio;
    float *kept = calloc((size_t)(ratio * lanes * dim), sizeof *kept);
    if (kept == NULL)
        abort();
    memcpy(kept, z, (size_t)(ratio * lanes * dim) * sizeof *kept);
    for (int t = 0; decoding() && t < ratio; t++)
        for (int k = 0; start + t < now.prompt && k < lanes * dim; k++)
            kept[t * lanes * dim + k] = -1e30f;
    ref_compressor_pool(prev_kv, prev_z, kv, kept, ratio, lanes, dim, c);
    free(kept);
}

/* The position bias counts its slots from the first decode step. */
static void add_phase_lost(float *x, const float *y, int64_t n)
{
    if (now.attention && decoding()) {
        int ratio = now_layer()->ratio;
        y += ((now.pos0 - now.prompt) % ratio - now.pos0 % ratio) * n;
    }
    ref_add(x, y, n);
}

/* The positions of the first decode step are used for all. */
static void angles_frozen(const float *inv, int half, const int64_t *pos, int64_t n, float *cos,
                          float *sin)
{
    track_rope_angles(inv, half, pos, n, cos, sin);
    int64_t first = now.prompt;
    if (decoding() && !angles_of_row())
        ref_rope_angles(inv, half, &first, 1, cos, sin);
}

static bool experts_not_clamped(const dsv4_experts_args *a, float *out)
{
    dsv4_layer l = *a->layer;
    dsv4_experts_args b = *a;
    if (decoding())
        l.swiglu_limit = 0;
    b.layer = &l;
    return ref_experts(&b, out);
}

static void plant_no_previous(plan *p)
{
    p->ops.compressor_pool = pool_no_previous;
}

static void plant_tail_lost(plan *p)
{
    p->ops.compressor_pool = pool_tail_lost;
}

static void plant_phase_lost(plan *p)
{
    p->ops.add = add_phase_lost;
}

static void plant_angles_frozen(plan *p)
{
    p->ops.rope_angles = angles_frozen;
}

static void plant_decode_not_clamped(plan *p)
{
    p->ops.experts = experts_not_clamped;
}

/* ---- later blocks -------------------------------------------------------------------------- */

/* The window that a block finds unfinished begins anew: its slots from the block before are lost.
 */
static void pool_block_tail_lost(const float *prev_kv, const float *prev_z, const float *kv,
                                 const float *z, int ratio, int lanes, int dim, float *c)
{
    /* Only the first row that a block completes can have begun in the block before. */
    static struct {
        int layer, dim;
        int64_t pos0;
    } last = {-1, 0, 0};
    bool first = last.layer != now.layer || last.dim != dim || last.pos0 != now.pos0;
    last.layer = now.layer, last.dim = dim, last.pos0 = now.pos0;
    int64_t lost = first ? now.pos0 % ratio : 0;
    float *kept = calloc((size_t)(ratio * lanes * dim), sizeof *kept);
    if (kept == NULL)
        abort();
    memcpy(kept, z, (size_t)(ratio * lanes * dim) * sizeof *kept);
    for (int64_t k = 0; k < lost * lanes * dim; k++)
        kept[k] = -1e30f;
    ref_compressor_pool(prev_kv, prev_z, kv, kept, ratio, lanes, dim, c);
    free(kept);
}

static void plant_block_tail_lost(plan *p)
{
    p->ops.compressor_pool = pool_block_tail_lost;
}

/* ---- a second request ---------------------------------------------------------------------- */

static int64_t leave_previous(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    for (int l = 0; l < s->n_layers; l++) {
        s->layers[l].compressor.has_prev = s->layers[l].compressor.lanes == 2;
        s->layers[l].indexer.has_prev = s->layers[l].indexer.lanes == 2;
    }
    return 0;
}

static int64_t leave_window(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    for (int l = 0; l < s->n_layers; l++)
        s->layers[l].window_rows = 7;
    return 0;
}

static int64_t leave_fill(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    for (int l = 0; l < s->n_layers; l++)
        s->layers[l].compressor.fill = s->layers[l].compressor.ratio == 0 ? 0 : 2;
    return 0;
}

static int64_t leave_rows(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    for (int l = 0; l < s->n_layers; l++)
        if (s->layers[l].compressor.ratio == 4)
            s->layers[l].compressor.n_rows = 3;
    return 0;
}

static int64_t leave_position(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    s->position = 8;
    for (int l = 0; l < s->n_layers; l++)
        s->layers[l].window_pos0 = 8;
    return 0;
}

/* ---- save and restore ---------------------------------------------------------------------- */

static int64_t restore_one_early(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    return --s->position;
}

static int64_t restore_skips_token(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    return s->position + 1;
}

static int64_t restore_no_index_rows(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    for (int l = 0; l < s->n_layers; l++) {
        compressor_state *c = &s->layers[l].indexer;
        if (c->ratio > 0)
            memset(c->rows, 0, (size_t)(c->n_rows * c->dim) * sizeof *c->rows);
    }
    return s->position;
}

static int64_t restore_no_window(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    for (int l = 0; l < s->n_layers; l++)
        memset(s->layers[l].window, 0,
               (size_t)(s->layers[l].window_rows * s->model->config.head_dim) * sizeof(float));
    return s->position;
}

static int64_t restore_no_tail(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    for (int l = 0; l < s->n_layers; l++) {
        compressor_state *c = &s->layers[l].compressor;
        size_t bytes = (size_t)(c->fill * c->lanes * c->dim) * sizeof *c->kv;
        if (c->ratio > 0) {
            memset(c->kv, 0, bytes);
            memset(c->z, 0, bytes);
        }
    }
    return s->position;
}

static int64_t restore_no_previous(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    for (int l = 0; l < s->n_layers; l++)
        s->layers[l].compressor.has_prev = s->layers[l].indexer.has_prev = false;
    return s->position;
}

/* Drafts are appended and taken back from the position and the window alone. */
static int64_t roll_back_half(dsv4_session *s, const int32_t *tokens)
{
    enum { DRAFTS = 5 };
    int64_t at = s->position;
    dsv4_error err;
    if (dsv4_session_append(s, tokens, DRAFTS, NULL, &err) != DSV4_OK)
        abort();
    s->position = at;
    for (int l = 0; l < s->n_layers; l++)
        s->layers[l].window_rows -= DRAFTS;
    return at;
}

/* A prefix hit: the rows are this request's, the window is another one's. */
static int64_t restore_foreign_window(dsv4_session *s, const int32_t *tokens)
{
    dsv4_session *other = NULL;
    dsv4_error err;
    if (dsv4_session_new(s->model, s->ops, &s->options, &other, &err) != DSV4_OK ||
        dsv4_session_append(other, tokens + 3, s->position, NULL, &err) != DSV4_OK)
        abort();
    for (int l = 0; l < s->n_layers; l++)
        memcpy(s->layers[l].window, other->layers[l].window,
               (size_t)(s->layers[l].window_rows * s->model->config.head_dim) * sizeof(float));
    dsv4_session_free(other);
    return s->position;
}

#define DISTURBS(name)                                                                             \
    static void plant_##name(plan *p)                                                              \
    {                                                                                              \
        p->disturb = name;                                                                         \
    }
DISTURBS(leave_previous)
DISTURBS(leave_window)
DISTURBS(leave_fill)
DISTURBS(leave_rows)
DISTURBS(leave_position)
DISTURBS(restore_one_early)
DISTURBS(restore_skips_token)
DISTURBS(restore_no_index_rows)
DISTURBS(restore_no_window)
DISTURBS(restore_no_tail)
DISTURBS(restore_no_previous)
DISTURBS(roll_back_half)
DISTURBS(restore_foreign_window)

const mutant mutants_state[] = {
    {"decode-no-previous-window", "omlx #2271 (CP04)", "state", 2, RUN_DECODE, plant_no_previous,
     "decode steps lose the overlap with the window before", NULL},
    {"decode-no-new-rows", "atlas #275 (CP05)", "state", 1, RUN_DECODE_ALONE, plant_rows_of_prompt,
     "rows that decode steps complete are never seen", NULL},
    {"decode-rows-hidden", "ds4 320b779 (AT02)", "state", 1, RUN_DECODE, plant_no_rows,
     "a single token is given ratio 0 and sees no compressed rows", NULL},
    {"decode-one-prompt-row", "lucebox 40b6cd16 (AT32)", "state", 0, RUN_DECODE_ALONE,
     plant_last_of_prompt, "of the prompt only the last window row is stored", NULL},
    {"decode-window-frozen", "lucebox 069498ee (AT33)", "state", 0, RUN_DECODE_ALONE,
     plant_frozen_window, "the window is that of the first decode step", NULL},
    {"decode-not-itself", "pypto-lib #476 (AT41)", "state", 0, RUN_DECODE, plant_old_ring,
     "a decode step sees the ring without its own row", NULL},
    {"decode-window-short", "own", "state", 0, RUN_DECODE, plant_short_window,
     "in decode the oldest window row is overwritten too early", NULL},
    {"decode-no-sink", "ik_llama.cpp #2087 (AT11)", "state", 0, RUN_DECODE, plant_decode_no_sink,
     "the decode kernel ignores the sinks", NULL},
    {"decode-fewer-rows", "ds4 49da384 (IX20)", "state", 2, RUN_DECODE_ALONE, plant_decode_fewer,
     "decode picks fewer rows than index_topk", NULL},
    {"decode-tail-lost", "fastllm 5cc2e010 (CP19), vllm-ascend #9111 (CP08)", "state", 1,
     RUN_DECODE_ALONE, plant_tail_lost,
     "the prompt's part of an unfinished window is lost at the first decode step", NULL},
    {"decode-bias-phase", "vllm-ascend fork #76 (CP06)", "state", 1, RUN_DECODE_ALONE,
     plant_phase_lost, "the position bias counts its slots from the first decode step", NULL},
    {"decode-position-frozen", "lucebox 42f1e105 (AT33)", "state", 0, RUN_DECODE_ALONE,
     plant_angles_frozen, "all decode steps are rotated by the first one's position", NULL},
    {"decode-not-clamped", "vllm-ascend #9589 (ME03)", "state", 0, RUN_DECODE,
     plant_decode_not_clamped, "the small-batch kernel does not clamp the routed experts", NULL},
    {"block-tail-lost", "vllm-ascend #132 (CP08)", "state", 1, RUN_SHORT, plant_block_tail_lost,
     "an unfinished window is begun anew by the next block", NULL},

    {"second-previous-window", "lucebox 35d0b05f (CP13)", "state", 2, RUN_SECOND,
     plant_leave_previous, "the overlap window of the request before is kept", NULL},
    {"second-window", "mlx-lm #1189 (KV19)", "state", 0, RUN_SECOND, plant_leave_window,
     "window rows of the request before are kept", NULL},
    {"second-unfinished-window", "lucebox 28fa4b0f (CP13)", "state", 1, RUN_SECOND,
     plant_leave_fill, "the unfinished window of the request before is kept", NULL},
    {"second-rows", "mlx-lm #1192 (KV18)", "state", 2, RUN_SECOND, plant_leave_rows,
     "compressed rows of the request before come first", NULL},
    {"second-position", "own", "state", 0, RUN_SECOND, plant_leave_position,
     "positions of the second request do not begin at 0", NULL},

    {"restore-one-early", "ik_llama.cpp cc100a1b8 (KV05)", "state", 0, RUN_RESTORE,
     plant_restore_one_early, "the last saved token is processed again", NULL},
    {"restore-skips-token", "ik_llama.cpp e3cf37863 (KV06)", "state", 0, RUN_RESTORE,
     plant_restore_skips_token, "a token after the restore point is skipped", NULL},
    {"restore-no-index-rows", "ik_llama.cpp #2146 (KV07)", "state", 2, RUN_RESTORE,
     plant_restore_no_index_rows, "the indexer's rows are not in the saved session", NULL},
    {"restore-no-window", "llama.cpp #26063 (KV01)", "state", 1, RUN_RESTORE,
     plant_restore_no_window, "window rows are not in the saved session", NULL},
    {"restore-no-tail", "fastllm 5cc2e010 (CP19)", "state", 1, RUN_RESTORE, plant_restore_no_tail,
     "the unfinished window is not in the saved session", NULL},
    {"restore-no-previous", "vllm-ascend #131 (CP08)", "state", 2, RUN_RESTORE,
     plant_restore_no_previous, "the overlap window is not in the saved session", NULL},
    {"rollback-keeps-rows", "lucebox #713 (KV10)", "state", 1, RUN_RESTORE, plant_roll_back_half,
     "rejected drafts stay in the compressor", NULL},
    {"prefix-foreign-window", "sglang #30339, ATOM #1417 (KV14)", "state", 1, RUN_RESTORE,
     plant_restore_foreign_window, "a prefix hit finds another request's window", NULL},
    {.name = NULL},
};
