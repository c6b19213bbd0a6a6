/* wrong_ops.c - operators that make the mistakes of a trial (hypotheses.h). Each is the reference's
 * own formula with a fork in it; they run on short cases, once something is known to be wrong. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hypotheses.h"

static _Thread_local const trial *now; /* whose mistakes the operators make */
static _Thread_local int post_call;    /* calls of hc_post since the last embed */
/* The block: position of its first token, tokens; where the last block of several tokens ended. */
static _Thread_local int64_t block_pos, block_n, prompt_end;
static _Thread_local int64_t angle_pos; /* of the last call of rope_angles */
static _Thread_local bool
    angles_seen;                      /* since the last hc_mix: the embedding is the main model's */
static _Thread_local bool mtp_begins; /* between the MTP layer's embedding and its first hc_mix */
static _Thread_local bool in_attention;
static _Thread_local int layer_now;
enum { MOST_LAYERS = 128 };
static _Thread_local int64_t pooled_at[2 * MOST_LAYERS]; /* block_pos + 1 of the last row made */

static bool decoding(void)
{
    return block_n == 1 && block_pos > 0;
}

/* Does the mistake, if it is made in decode steps alone, spare this block? */
static bool spared(const mistake *m)
{
    return m->decode_only && !decoding();
}

static const dsv4_ops *ref(void)
{
    return dsv4_ops_reference();
}

/* ---- attention ------------------------------------------------------------------------------ */

static bool sees_row(const dsv4_attention_args *a, const mistake *m, int64_t i, int64_t row,
                     int64_t limit)
{
    bool all = m->topk_flattened || m->topk_of_block;
    int64_t from = all ? 0 : i, to = all ? a->n - 1 : i;
    if (row < m->rows_skip || row >= limit)
        return false;
    if (a->topk == NULL || m->topk_ignored)
        return true;
    for (int64_t t = from; t <= to; t++)
        for (int s = 0; s < a->k; s++)
            if (a->topk[t * a->k + s] == row)
                return true;
    return false;
}

static int64_t visible(const dsv4_attention_args *a, const mistake *m, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = 0, end = a->pos0 + a->n - 1;
    int64_t first = m->window_unlimited ? 0 : t - a->window_size + 1 - m->window_more;
    int64_t last = m->window_to_block_end ? end : m->window_next && t < end ? t + 1 : t;
    if (m->window_not_itself && t > 0)
        last--;
    if (m->window_from_block && first < a->pos0)
        first = a->pos0;
    int64_t left = m->window_rows_left > 0 ? m->window_rows_left : 1;
    if (m->window_of_step && first < prompt_end - left)
        first = prompt_end - left;
    if (m->window_frozen) {
        first = prompt_end - a->window_size + 1;
        last = prompt_end < t ? prompt_end : t;
    }
    first = first > a->window_pos0 ? first : a->window_pos0;
    for (int64_t p = first; p <= last; p++) {
        int64_t slot = m->window_overwritten ? p + (end - p) / a->window_size * a->window_size : p;
        out[n++] = a->window + (slot - a->window_pos0) * a->dim;
    }
    if (a->ratio == 0 || m->rows_hidden)
        return n;
    int64_t limit = t + 1 > m->rows_late ? (t + 1 - m->rows_late) / a->ratio : 0,
            most = (end + 1) / a->ratio;
    if (m->rows_of_block_end || (m->rows_none_all && limit == 0) ||
        (m->topk_of_block && a->topk != NULL))
        limit = most;
    limit = limit < most ? limit : most;
    if (m->rows_of_prompt && limit > prompt_end / a->ratio)
        limit = prompt_end / a->ratio;
    if (m->rows_most > 0 && a->topk == NULL && limit > m->rows_most)
        limit = m->rows_most;
    for (int64_t j = 0; j < limit; j++)
        if (sees_row(a, m, i, j, limit))
            out[n++] = a->rows + j * a->dim;
    return n;
}

static bool wrong_attention(const dsv4_attention_args *a, float *out)
{
    const mistake *m = &now->m;
    if (spared(m))
        return ref()->attention(a, out);
    int64_t most = a->pos0 + 2 * a->n + (a->ratio > 0 ? (a->pos0 + a->n) / a->ratio : 0) + 1;
    const float **rows = dsv4_alloc((size_t)most, sizeof *rows, "attention", NULL);
    double *p = dsv4_alloc((size_t)most, sizeof *p, "attention", NULL);
    int r = now->model.config.qk_rope_head_dim;
    double scale = 1 / sqrt((double)(m->scale_unrotated ? a->dim - r : a->dim));
    bool ok = rows != NULL && p != NULL;
    for (int64_t i = 0; ok && i < a->n; i++) {
        int64_t n = visible(a, m, i, rows);
        for (int h = 0; h < a->heads; h++) {
            const float *q = a->q + (i * a->heads + h) * a->dim;
            float *to = out + (i * a->heads + h) * a->dim;
            double sink = (double)a->sink[m->sink_of_head_0 ? 0 : h], max = sink, sum;
            for (int64_t j = 0; j < n; j++) {
                p[j] = 0;
                for (int k = 0; k < a->dim; k++)
                    p[j] += (double)q[k] * (double)rows[j][k];
                p[j] *= scale;
                max = fmax(max, p[j]);
            }
            sum = (1 + m->sinks) * exp(sink - max);
            for (int64_t j = 0; j < n; j++)
                sum += p[j] = exp(p[j] - max);
            for (int k = 0; k < a->dim; k++) {
                double o = 0;
                for (int64_t j = 0; j < n; j++)
                    o += p[j] * (double)rows[j][k];
                to[k] = (float)(n > 0 ? o / sum : 0);
            }
        }
    }
    free(rows);
    free(p);
    return ok;
}

/* ---- mHC ------------------------------------------------------------------------------------ */

enum { MAX_HC = 16 };

static void divide(double *c, int hc, bool columns, double eps)
{
    for (int a = 0; a < hc; a++) {
        double sum = 0;
        for (int b = 0; b < hc; b++)
            sum += c[columns ? b * hc + a : a * hc + b];
        for (int b = 0; b < hc; b++)
            c[columns ? b * hc + a : a * hc + b] /= sum + eps;
    }
}

static void softmax_lines(double *c, int hc, bool columns)
{
    for (int k = 0; k < hc * hc; k++)
        c[k] = exp(c[k]);
    divide(c, hc, columns, 0);
}

static void wrong_hc_gates(const float *mixes, const float *scale, const float *base, int64_t n,
                           int hc, int iters, float eps, float *pre, float *post, float *comb)
{
    const mistake *m = &now->m;
    int width = (2 + hc) * hc, passes = m->sinkhorn_passes > 0 ? m->sinkhorn_passes : iters;
    double e = m->comb_no_eps ? 0 : (double)eps;
    ref()->hc_gates(mixes, scale, base, n, hc, iters, eps, pre, post, comb);
    for (int64_t i = 0; i < n; i++) {
        double c[MAX_HC * MAX_HC];
        for (int j = 0; j < hc && m->pre_no_eps; j++)
            pre[i * hc + j] -= eps;
        for (int k = 0; k < hc * hc; k++) {
            c[k] =
                (double)mixes[i * width + 2 * hc + k] * (double)scale[2] + (double)base[2 * hc + k];
            if (m->comb_start == COMB_SIGMOID)
                c[k] = 1 / (1 + exp(-c[k]));
            else if (m->comb_start == COMB_EXP)
                c[k] = exp(c[k]);
        }
        if (m->comb_start == COMB_SOFTMAX)
            softmax_lines(c, hc, m->comb_column_first || m->comb_axis != START_ROWS);
        for (int pass = 1; pass < passes && m->comb_axis == START_COLUMNS_THEN_ROWS; pass++) {
            divide(c, hc, false, e);
            divide(c, hc, true, e);
        }
        bool done = m->comb_start == COMB_EXP || m->comb_axis == START_COLUMNS_THEN_ROWS;
        for (int k = 0; k < hc * hc && !done; k++)
            c[k] += e;
        for (int pass = 0; pass < passes && !done; pass++) {
            if (pass > 0)
                divide(c, hc, m->comb_column_first, e);
            divide(c, hc, !m->comb_column_first, e);
        }
        for (int k = 0; k < hc * hc; k++)
            comb[i * hc * hc + k] = (float)c[k];
    }
}

static void wrong_hc_post(const float *block, const float *streams, const float *post,
                          const float *comb, int64_t n, int hc, int64_t dim, float *out)
{
    const mistake *m = &now->m;
    bool lost = ++post_call == m->post_lost;
    for (int64_t i = 0; i < n; i++)
        for (int b = 0; b < hc; b++)
            for (int64_t k = 0; k < dim; k++) {
                double gate = m->post_ungated ? 1 : (double)post[i * hc + b], sum = 0;
                int to = m->post_narrowed ? 0 : b;
                if (m->post_narrowed)
                    gate = (double)post[i * hc];
                for (int a = 0; a < hc; a++) {
                    double c = m->post_of_first     ? (a == 0)
                               : m->comb_identity   ? (a == to)
                               : m->comb_transposed ? (double)comb[(i * hc + to) * hc + a]
                                                    : (double)comb[(i * hc + a) * hc + to];
                    sum += c * (double)streams[(i * hc + a) * dim + k];
                }
                out[(i * hc + b) * dim + k] =
                    lost ? streams[(i * hc + b) * dim + k]
                         : (float)(gate * (double)block[i * dim + k] + sum);
            }
}

static void wrong_hc_collapse(const float *streams, const float *pre, int64_t n, int hc,
                              int64_t dim, float *x)
{
    (void)pre;
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < dim; k++) {
            double sum = 0;
            for (int j = 0; j < hc; j++)
                sum += (double)streams[(i * hc + j) * dim + k];
            x[i * dim + k] = (float)(sum / hc);
        }
}

/* The product reads the streams as [D][hc]; the norm of all is the same. */
static void wrong_hc_mix_order(const dsv4_tensor *fn, const float *streams, float eps, int64_t n,
                               float *out)
{
    int64_t width = fn->cols;
    int hc = now->model.config.hc_mult;
    float *turned = dsv4_alloc((size_t)(n * width), sizeof *turned, "streams", NULL);
    if (turned == NULL)
        return;
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < width; k++)
            turned[i * width + k] = streams[i * width + (k % hc) * (width / hc) + k / hc];
    ref()->hc_mix(fn, turned, eps, n, out);
    free(turned);
}

/* Where in the model are we? */
static void watch_hc_mix(const dsv4_tensor *fn, const float *streams, float eps, int64_t n,
                         float *out)
{
    int64_t width = fn->cols, hc = now->model.config.hc_mult;
    bool layers_done = true; /* the head, or the MTP layer */
    angles_seen = mtp_begins = in_attention = false;
    for (int l = 0; l < now->model.config.num_hidden_layers; l++)
        if (fn == &now->layers[l].hc_attn.fn || fn == &now->layers[l].hc_ffn.fn) {
            layer_now = l;
            layers_done = false;
            in_attention = fn == &now->layers[l].hc_attn.fn;
        }
    if (now->only_here) { /* the session reads its operators from here */
        trial *t = (trial *)(uintptr_t)now;
        bool here = layer_now == t->layer && in_attention == t->attention_half && !layers_done;
        t->ops = here ? t->wrong : t->spare;
    }
    if (now->m.embed_one_stream && fn == &now->layers[0].hc_attn.fn)
        for (int64_t i = 0; i < n; i++) /* the session's own buffer */
            memset((float *)(uintptr_t)streams + i * width + width / hc, 0,
                   (size_t)(width - width / hc) * sizeof *streams);
    if (now->m.mix_interleaved)
        wrong_hc_mix_order(fn, streams, eps, n, out);
    else
        ref()->hc_mix(fn, streams, eps, n, out);
}

static void wrong_hc_head_gates(const float *m, const float *scale, const float *base, int64_t n,
                                int hc, float eps, float *pre)
{
    ref()->hc_head_gates(m, scale, base, n, hc, eps, pre);
    for (int64_t i = 0; i < n * hc; i++)
        pre[i] = now->m.head_mean    ? 1.0f / (float)hc
                 : now->m.head_first ? (i % hc == 0 ? 1.0f : 0.0f)
                                     : 2 * pre[i];
}

/* ---- norms, rotation of the output ---------------------------------------------------------- */

static bool is_weight(const float *w, const dsv4_tensor *t, int64_t dim)
{
    if (t == NULL || w == NULL || t->cols != dim)
        return false;
    float *own = dsv4_alloc((size_t)dim, sizeof *own, "a norm weight", NULL);
    if (own == NULL)
        return false;
    dsv4_tensor_row(t, 0, own);
    bool same = memcmp(own, w, (size_t)dim * sizeof *own) == 0;
    free(own);
    return same;
}

static void wrong_rmsnorm(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                          float *y)
{
    const mistake *m = &now->m;
    if (m->mtp_no_hnorm && mtp_begins && y == x)
        return;
    if (m->mtp_narrowed) {
        int hc = now->model.config.hc_mult;
        bool streams = mtp_begins && y == x;
        ref()->rmsnorm(x, w, eps, n, dim, y);
        for (int64_t i = 0; streams && i < n; i++)
            if (i % hc != 0)
                memcpy(y + i * dim, y + i / hc * hc * dim, (size_t)dim * sizeof *y);
        return;
    }
    if (is_weight(w, m->norm_skipped, dim)) {
        memmove(y, x, (size_t)(n * dim) * sizeof *y);
        return;
    }
    if (is_weight(w, m->norm_twice, dim)) {
        ref()->rmsnorm(x, w, eps, n, dim, y);
        ref()->rmsnorm(y, w, eps, n, dim, y);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const float *in = x + i * dim;
        double sum = 0, mean = 0;
        for (int64_t k = 0; k < dim; k++)
            mean += (double)in[k];
        mean = m->norm == NORM_CENTRED ? mean / (double)dim : 0;
        for (int64_t k = 0; k < dim; k++)
            sum += ((double)in[k] - mean) * ((double)in[k] - mean);
        double scale = 1 / sqrt(sum / (m->norm == NORM_SUM ? 1 : (double)dim) + (double)eps);
        for (int64_t k = 0; k < dim; k++) {
            double g = (w != NULL ? (double)w[k] : 1) + (m->norm == NORM_ONE_PLUS ? 1 : 0);
            y[i * dim + k] = (float)(((double)in[k] - mean) * scale * g);
        }
    }
}

static void wrong_head_norm(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    (void)q, (void)eps, (void)n, (void)dim, (void)bf16; /* left out */
}

/* Group g of token t is read at place (t, g) of a layout [groups][n]. */
static void wrong_token_axis(float *x, int64_t n, int64_t groups, int64_t width)
{
    float *copy = dsv4_alloc((size_t)(n * groups * width), sizeof *copy, "heads", NULL);
    if (copy == NULL)
        return;
    memcpy(copy, x, (size_t)(n * groups * width) * sizeof *copy);
    for (int64_t i = 0; i < n; i++)
        for (int64_t g = 0; g < groups; g++)
            memcpy(x + (i * groups + g) * width, copy + (g * n + i) * width,
                   (size_t)width * sizeof *x);
    free(copy);
}

static void wrong_rope(float *x, int64_t n, int heads, int d, int r, const float *cos_table,
                       const float *sin_table, bool inverse)
{
    const mistake *m = &now->m;
    if (!inverse || m->out_turn == OUT_BACK)
        ref()->rope(x, n, heads, d, r, cos_table, sin_table, inverse);
    else if (m->out_turn == OUT_FORWARD)
        ref()->rope(x, n, heads, d, r, cos_table, sin_table, false);
    if (!inverse || m->groups == GROUPS_IN_ORDER)
        return;
    int groups = now->model.config.o_groups, per = heads / groups;
    if (m->groups == GROUPS_TOKENS) {
        wrong_token_axis(x, n, groups, (int64_t)per * d);
        return;
    }
    float *copy = dsv4_alloc((size_t)(heads * d), sizeof *copy, "heads", NULL);
    for (int64_t i = 0; copy != NULL && i < n; i++) {
        memcpy(copy, x + i * heads * d, (size_t)(heads * d) * sizeof *copy);
        for (int h = 0; h < heads; h++) {
            int g = h / per, from = m->groups == GROUPS_REVERSED ? (groups - 1 - g) * per + h % per
                                    : m->groups == GROUPS_ROTATED
                                        ? (g + m->groups_by) % groups * per + h % per
                                        : (h % per) * groups + g;
            memcpy(x + (i * heads + h) * d, copy + from * d, (size_t)d * sizeof *copy);
        }
    }
    free(copy);
}

/* ---- compressor and indexer ----------------------------------------------------------------- */

static void wrong_pool(const float *prev_kv, const float *prev_z, const float *kv, const float *z,
                       int ratio, int lanes, int dim, float *c)
{
    const mistake *m = &now->m;
    int width = lanes * dim, own = (lanes - 1) * dim, last = ratio, lost = 0;
    bool index = dim == now->model.config.index_head_dim && ratio == 4;
    int64_t *made = &pooled_at[2 * (layer_now % MOST_LAYERS) + (index ? 1 : 0)];
    bool first = *made != block_pos + 1; /* the first row of this block has begun in the last one */
    *made = block_pos + 1;
    if (spared(m)) {
        ref()->compressor_pool(prev_kv, prev_z, kv, z, ratio, lanes, dim, c);
        return;
    }
    if (m->pool == POOL_BLOCK_TAIL && first)
        lost = (int)(block_pos % ratio);
    if (m->pool == POOL_PROMPT_TAIL && prompt_end > block_pos + 1 - ratio)
        lost = (int)(prompt_end - (block_pos + 1 - ratio));
    lost = lost < ratio ? lost : ratio - 1;
    if (m->pool == POOL_DECODE_ALONE)
        prev_kv = prev_z = NULL;
    bool zeros = m->pool == POOL_ZEROS_BEFORE && prev_kv == NULL && lanes == 2, swapped = false;
    if (m->pool == POOL_ALONE)
        prev_kv = prev_z = NULL;
    if (m->pool == POOL_LAST_LOST)
        last--;
    if (m->pool == POOL_LANES && lanes == 2)
        swapped = true;
    for (int k = 0; k < dim; k++) {
        int mine = swapped ? k : own + k, theirs = swapped ? own + k : k;
        double max = -INFINITY, sum = 0, weighted = 0;
        for (int t = 0; t < ratio; t++) {
            max = t < lost ? max : fmax(max, (double)z[t * width + mine]);
            max = fmax(max, zeros ? 0 : prev_z != NULL ? (double)prev_z[t * width + theirs] : max);
        }
        for (int t = 0; t < ratio; t++) {
            if (prev_kv != NULL || zeros) {
                double e = exp((zeros ? 0 : (double)prev_z[t * width + theirs]) - max);
                e = m->pool == POOL_MEAN ? 1 : e;
                sum += e;
                weighted += e * (zeros ? 0 : (double)prev_kv[t * width + theirs]);
            }
            if (t >= last || t < lost)
                continue;
            double e = m->pool == POOL_MEAN ? 1 : exp((double)z[t * width + mine] - max);
            sum += e;
            weighted += e * (double)kv[t * width + mine];
        }
        c[k] = (float)(weighted / sum);
    }
}

static void wrong_linear(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                         int64_t ldy)
{
    const dsv4_layer *l = &now->layers[layer_now];
    const dsv4_compressor_weights *a = &l->compressor, *b = &l->indexer.compressor;
    now->right_ops.linear(w, x, ldx, n, y, ldy);
    if (in_attention && (w == &a->wkv || w == &a->wgate || w == &b->wkv || w == &b->wgate))
        for (int64_t i = 0; i + 1 < n; i++)
            memset(y + i * ldy, 0, (size_t)w->rows * sizeof *y);
}

/* In the attention block the position bias is all that is added: its slot is counted from the first
 * decode step. y lies in the block's table of slots. */
static void wrong_add(float *x, const float *y, int64_t n)
{
    int ratio = now->layers[layer_now].ratio;
    if (in_attention && decoding() && ratio > 0)
        y += ((block_pos - prompt_end) % ratio - block_pos % ratio) * n;
    ref()->add(x, y, n);
}

static void wrong_scores(const float *q, const float *rows, const float *w, int heads, int dim,
                         int64_t n_rows, bool bf16, float *scores)
{
    const mistake *m = &now->m;
    (void)bf16;
    for (int64_t j = 0; j < n_rows; j++) {
        double sum = 0;
        for (int h = 0; h < heads; h++) {
            double dot = 0, weight = m->score == SCORE_UNWEIGHTED ? 1
                                     : m->score == SCORE_AXIS     ? (double)w[j % heads]
                                                                  : (double)w[h];
            for (int k = 0; k < dim; k++)
                dot += (double)q[(int64_t)h * dim + k] * (double)rows[j * dim + k];
            bool relu = m->score != SCORE_NO_RELU && m->score != SCORE_RELU_OUTSIDE;
            sum += weight * (relu ? fmax(dot, 0) : dot);
        }
        scores[j] = (float)(m->score == SCORE_RELU_OUTSIDE ? fmax(sum, 0) : sum);
    }
}

static void wrong_topk(const float *scores, int64_t n, int k, int32_t *out)
{
    enum { TILE = 16 };
    const mistake *m = &now->m;
    float *other = dsv4_alloc((size_t)(n + 1), sizeof *other, "scores", NULL);
    if (other == NULL)
        return;
    for (int64_t j = 0; j < n; j++)
        other[j] = m->pick == PICK_SMALLEST ? -scores[j]
                   : m->pick == PICK_NEWEST ? (float)j
                                            : scores[j];
    int64_t seen = m->pick == PICK_FIRST_TILE && n > TILE ? TILE : n;
    if (m->pick_tile > 0 && n > m->pick_tile)
        seen = m->pick_tile;
    if (m->pick == PICK_FIRST_COUNT && (block_pos + 1) / 4 < n)
        seen = (block_pos + 1) / 4;
    if (m->pick == PICK_SUFFIX && block_pos > 0 && (block_n + 3) / 4 < n)
        seen = (block_n + 3) / 4;
    ref()->topk(other, seen, k, out);
    for (int s = k - m->pick_fewer; s < k && !spared(m); s++)
        out[s] = -1;
    free(other);
}

/* ---- router and experts --------------------------------------------------------------------- */

static double route_score(double x)
{
    switch (now->m.route) {
    case ROUTE_SIGMOID:
        return 1 / (1 + exp(-x));
    case ROUTE_SOFTMAX:
        return exp(x);
    case ROUTE_SOFTPLUS:
        return fmax(x, 0) + log1p(exp(-fabs(x)));
    case ROUTE_NAIVE:
        return (double)sqrtf(logf(1 + expf((float)x)));
    default:
        return sqrt(fmax(x, 0) + log1p(exp(-fabs(x))));
    }
}

static int32_t hashed(const dsv4_tensor *table, const int32_t *ids, int64_t n, int64_t i, int k,
                      int s)
{
    int64_t row = ids[i];
    if (now->m.hash == HASH_POSITION)
        row = (block_pos + i) % table->rows;
    else if (now->m.hash_offset != 0)
        row = ids[i + now->m.hash_offset < 0   ? 0
                  : i + now->m.hash_offset < n ? i + now->m.hash_offset
                                               : n - 1];
    else if (now->m.hash == HASH_NEIGHBOUR)
        row = ids[i + 1 < n ? i + 1 : i];
    else if (now->m.hash == HASH_HALF) /* 64-bit ids in steps of 4 bytes: every other is 0 */
        row = i % 2 == 0 ? ids[i / 2] : 0;
    return (int32_t)dsv4_tensor_int(table, row * k + s);
}

static void wrong_router(const float *logits, const float *bias, const dsv4_tensor *table,
                         const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                         int32_t *experts, float *weights)
{
    const mistake *m = &now->m;
    if (m->hash == HASH_SCORES)
        table = NULL;
    for (int64_t i = 0; i < n; i++) {
        const float *logit = logits + i * n_experts;
        int32_t *chosen = experts + i * k;
        double sum = 0;
        int limit = m->route_first_group ? n_experts / 2 : n_experts;
        for (int s = 0; s < k; s++) {
            int best = -1;
            double best_value = 0;
            for (int e = 0; table == NULL && e < limit; e++) {
                bool taken = false;
                for (int before = 0; before < s; before++)
                    taken = taken || chosen[before] == e;
                double b = bias != NULL && !m->route_no_bias ? (double)bias[e] : 0;
                double value = (double)(float)route_score((double)logit[e]) + b;
                if (m->route_padded && value < route_score(0)) /* a padded column wins */
                    value = -1;
                if (!taken && (best < 0 || value > best_value)) {
                    best = e;
                    best_value = value;
                }
            }
            chosen[s] = table != NULL ? hashed(table, ids, n, i, k, s) : best;
        }
        for (int s = 0; s < k; s++) {
            double b = m->route_bias_weighs && bias != NULL ? (double)bias[chosen[s]] : 0;
            weights[i * k + s] = (float)(route_score((double)logit[chosen[s]]) + b);
            sum += (double)weights[i * k + s];
        }
        for (int e = 0; e < n_experts && m->route == ROUTE_SOFTMAX; e++)
            sum += e == 0 ? route_score((double)logit[0]) - sum : route_score((double)logit[e]);
        for (int s = 0; s < k; s++)
            weights[i * k + s] = m->route_equal ? scaling / (float)k
                                 : m->route_not_normalised
                                     ? weights[i * k + s] * scaling
                                     : (float)((double)weights[i * k + s] / sum * (double)scaling);
        for (int s = 0; s + 1 < k && m->expert_slots_turned; s++) {
            float w = weights[i * k + s];
            weights[i * k + s] = weights[i * k + s + 1];
            weights[i * k + s + 1] = w;
        }
    }
}

static double activation(double g)
{
    switch (now->m.act) {
    case ACT_RELU:
        return fmax(g, 0);
    case ACT_GELU:
        return 0.5 * g * (1 + erf(g / sqrt(2.0)));
    default:
        return g / (1 + exp(-g));
    }
}

static void wrong_swiglu(const float *gate, const float *up, float limit, int64_t n, float *h)
{
    const mistake *m = &now->m;
    for (int64_t i = 0; i < n; i++) {
        double g = (double)gate[i], u = (double)up[i], L = (double)limit;
        if (L > 0 && m->clamp != CLAMP_AFTER) {
            g = fmin(g, L);
            u = fmin(u, L);
            u = m->clamp == CLAMP_UP_ABOVE ? u : fmax(u, -L);
        }
        double x = activation(g) * u;
        h[i] = (float)(L > 0 && m->clamp == CLAMP_AFTER ? fmin(fmax(x, -L), L) : x);
    }
}

static bool unclamped_experts(const dsv4_experts_args *a, float *out)
{
    dsv4_experts_args b = *a;
    dsv4_layer l = *a->layer;
    l.swiglu_limit = spared(&now->m) ? l.swiglu_limit : 0;
    b.layer = &l;
    return now->right_ops.experts(&b, out);
}

static bool wrong_experts(const dsv4_experts_args *a, float *out)
{
    const mistake *m = &now->m;
    const dsv4_layer *l = a->layer;
    int64_t D = l->w1[0].cols, F = l->w1[0].rows;
    float *gate = dsv4_alloc((size_t)F, sizeof *gate, "an expert", NULL);
    float *up = dsv4_alloc((size_t)F, sizeof *up, "an expert", NULL);
    float *y = dsv4_alloc((size_t)D, sizeof *y, "an expert", NULL);
    bool ok = gate != NULL && up != NULL && y != NULL;
    for (int64_t i = 0; ok && i < a->n; i++) {
        const int32_t *ids = a->experts + i * a->k;
        const float *w = a->weights + i * a->k;
        memset(out + i * D, 0, (size_t)D * sizeof *out);
        for (int s = 0; s < a->k - (m->expert_slot_lost ? 1 : 0); s++) {
            double weight = s + 1 == m->expert_slot ? 0 : (double)w[s];
            if (m->expert_unweighted)
                weight = 1.0 / a->k;
            if (m->expert_weighted_twice)
                weight *= weight;
            if (m->expert_sorted) { /* experts in rising order, weights as they were */
                int rank = 0;
                for (int other = 0; other < a->k; other++)
                    rank += ids[other] < ids[s];
                weight = (double)w[rank];
            }
            ref()->linear(&l->w1[ids[s]], a->x + i * D, D, 1, gate, F);
            ref()->linear(&l->w3[ids[s]], a->x + i * D, D, 1, up, F);
            wrong_swiglu(gate, up, l->swiglu_limit, F, gate);
            ref()->linear(&l->w2[ids[s]], gate, F, 1, y, D);
            for (int64_t k = 0; k < D; k++)
                out[i * D + k] += (float)(weight * (double)y[k]);
        }
    }
    free(gate);
    free(up);
    free(y);
    return ok;
}

/* ---- embedding, angles -------------------------------------------------------------------- */

static void wrong_embed(const dsv4_tensor *table, const int32_t *ids, int64_t n, float *x)
{
    mtp_begins = !angles_seen;
    post_call = 0;
    if (!mtp_begins) {
        block_pos = angle_pos;
        block_n = n;
        prompt_end = n > 1 ? block_pos + n : prompt_end;
    }
    angles_seen = false;
    for (int64_t i = 0; i < n; i++) {
        int64_t id = ids[i];
        if (now->m.embed == EMBED_NEXT)
            id = (id + 1) % table->rows;
        else if (now->m.embed == EMBED_LAST || (now->m.mtp_not_shifted && mtp_begins))
            id = ids[i > 0 ? i - 1 : 0];
        dsv4_tensor_row(table, id, x + i * table->cols);
    }
}

static void watch_angles(const float *inv_freq, int half, const int64_t *positions, int64_t n,
                         float *cos_table, float *sin_table)
{
    if (n > 0)
        angle_pos = positions[0];
    angles_seen = true;
    ref()->rope_angles(inv_freq, half, positions, n, cos_table, sin_table);
    for (int64_t i = 0; i < n && mtp_begins && now->m.mtp_doubled; i++) {
        int64_t twice = 2 * positions[i];
        ref()->rope_angles(inv_freq, half, &twice, 1, cos_table + i * half, sin_table + i * half);
    }
}

void trial_only_here(trial *t, bool attention_half)
{
    t->only_here = true;
    t->attention_half = attention_half;
    t->wrong = t->ops;
    t->spare = t->right_ops;
    t->spare.name = t->ops.name;
    t->spare.embed = t->ops.embed;
    t->spare.rope_angles = t->ops.rope_angles;
    t->spare.hc_mix = t->ops.hc_mix;
    t->ops = t->spare;
}

/* ---- which of them a trial needs ------------------------------------------------------------ */

void wrong_ops_install(trial *t)
{
    const mistake *m = &t->m;
    dsv4_ops *o = &t->ops;
    static const mistake none;
    now = t;
    post_call = layer_now = 0;
    block_pos = block_n = prompt_end = 0;
    angles_seen = mtp_begins = in_attention = false;
    memset(pooled_at, 0, sizeof pooled_at);
    t->ops = t->right_ops;
    o->name = "trial";
    o->embed = wrong_embed;
    o->rope_angles = watch_angles;
    o->hc_mix = watch_hc_mix;
    if (memcmp(m, &none, offsetof(mistake, comb_start)) != 0)
        o->attention = wrong_attention;
    if (m->comb_start != COMB_SOFTMAX || m->comb_column_first || m->comb_no_eps || m->pre_no_eps ||
        m->sinkhorn_passes > 0 || m->comb_axis != START_ROWS)
        o->hc_gates = wrong_hc_gates;
    if (m->comb_transposed || m->comb_identity || m->post_ungated || m->post_narrowed ||
        m->post_of_first || m->post_lost > 0)
        o->hc_post = wrong_hc_post;
    if (m->pre_mean)
        o->hc_collapse = wrong_hc_collapse;
    if (m->head_mean || m->head_first || m->head_doubled)
        o->hc_head_gates = wrong_hc_head_gates;
    if (m->norm != NORM_RMS || m->norm_twice != NULL || m->norm_skipped != NULL ||
        m->mtp_narrowed || m->mtp_no_hnorm)
        o->rmsnorm = wrong_rmsnorm;
    if (m->head_norm_skipped)
        o->head_norm = wrong_head_norm;
    if (m->out_turn != OUT_BACK || m->groups != GROUPS_IN_ORDER)
        o->rope = wrong_rope;
    if (m->pool != POOL_RIGHT)
        o->compressor_pool = wrong_pool;
    if (m->pool_block_last)
        o->linear = wrong_linear;
    if (m->bias_phase)
        o->add = wrong_add;
    if (m->experts_unclamped)
        o->experts = unclamped_experts;
    if (m->score != SCORE_RIGHT)
        o->indexer_scores = wrong_scores;
    if (m->pick != PICK_RIGHT || m->pick_tile > 0)
        o->topk = wrong_topk;
    if (m->route != ROUTE_SQRT_SOFTPLUS || m->route_no_bias || m->route_bias_weighs ||
        m->route_not_normalised || m->route_first_group || m->route_padded || m->route_equal ||
        m->hash != HASH_TABLE || m->hash_offset != 0 || m->expert_slots_turned)
        o->router = wrong_router;
    if (m->clamp != CLAMP_RIGHT || m->act != ACT_SILU) {
        o->swiglu = wrong_swiglu;
        o->experts = wrong_experts;
    }
    if (m->expert_unweighted || m->expert_weighted_twice || m->expert_slot_lost ||
        m->expert_sorted || m->expert_slot > 0)
        o->experts = wrong_experts;
    wrong_rounding_install(t);
}
