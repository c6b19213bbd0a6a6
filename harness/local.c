/* local.c - where the choices of a recorded run are in doubt. A dump of streams does not say which
 * rows and experts it has picked, nor what it has rounded; the reference, working on the dump's own
 * streams, says where it might have fallen the other way: at a score inside the noise, at a value
 * beside a midpoint, and at the positions that see such a value. There, and only there, the dump is
 * held to the budget of rows that follow a tie or flip. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "judge_private.h"

enum { FLIPPED = 1, CHOSEN = 2 }; /* a code; a row or an expert */

struct local_layer {
    uint8_t *doubt;     /* [context] what this position's block rests on */
    uint8_t *query;     /* [context] a code of the indexer's query */
    uint8_t *row;       /* [context] a code of compressed row j */
    uint8_t *index_row; /* [context] a code of the indexer's row j */
};

bool local_new(judge *j)
{
    size_t n = (size_t)j->c->context;
    j->local = dsv4_alloc((size_t)j->layers, sizeof *j->local, "a judge", &j->err);
    for (int l = 0; j->local != NULL && l < j->layers; l++) {
        uint8_t *all = dsv4_alloc(4 * n, 1, "a judge", &j->err);
        if (all == NULL)
            return false;
        j->local[l] = (local_layer){all, all + n, all + 2 * n, all + 3 * n};
    }
    return j->local != NULL;
}

void local_free(judge *j)
{
    for (int l = 0; j->local != NULL && l < j->layers; l++)
        free(j->local[l].doubt);
    free(j->local);
}

void local_rounded(judge *j, dsv4_tap_id id, int layer, int64_t position)
{
    local_layer *l = &j->local[layer];
    int64_t end = position + j->o.config->sliding_window;
    switch (id) {
    case DSV4_TAP_KV: /* seen by the tokens of its window */
        for (int64_t p = position; p < end && p < j->c->context; p++)
            l->doubt[p] |= FLIPPED;
        break;
    case DSV4_TAP_COMPRESSED_KV: /* by every later token; by those that pick it, if they pick */
        l->row[position] = 1;
        for (int64_t p = judge_reach(j, id, layer, position);
             j->o.config->compress_ratios[layer] != 4 && p < j->c->context; p++)
            l->doubt[p] |= FLIPPED;
        break;
    case DSV4_TAP_INDEXER_Q:
        l->query[position] = 1;
        break;
    case DSV4_TAP_INDEXER_KV:
        l->index_row[position] = 1;
        break;
    default:
        break;
    }
}

static int falling(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Scores [n] of the indexer or the router: is the choice of k inside the noise, or inside what a
 * code that may have been rounded the other way does to it? */
void local_scores(judge *j, dsv4_tap_id id, int layer, int64_t position, const float *scores,
                  int64_t n)
{
    const dsv4_config *c = j->o.config;
    bool index = id == DSV4_TAP_INDEXER_SCORES;
    int64_t k = index ? c->index_topk : c->num_experts_per_tok;
    const budget *clean = judge_budget(j, "@selection", ROWS_CLEAN);
    const budget *after = judge_budget(j, "@selection", ROWS_AFTER_FLIP);
    if (layer < 0 || n <= k || clean == NULL || after == NULL ||
        (!index && layer < c->num_hash_layers))
        return;
    local_layer *l = &j->local[layer];
    float *sorted = dsv4_alloc((size_t)n, sizeof *sorted, "scores", &j->err);
    if (sorted == NULL) {
        j->status = DSV4_E_MACHINE;
        return;
    }
    double largest = 0;
    for (int64_t i = 0; i < n; i++)
        largest = fmax(largest, fabs((double)scores[i]));
    memcpy(sorted, scores, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, falling);
    double last = (double)sorted[k - 1], next = (double)sorted[k];
    bool moved = index ? l->query[position] != 0 : l->doubt[position] != 0;
    /* An indexer's code is a factor of the score; the router's input is what a flipped code of a KV
     * row leaves of itself in a block's result, and both sides of a swap may move. */
    const budget *flip = judge_budget(j, "@flip", ROWS_AFTER_FLIP);
    double by = index || flip == NULL ? after->fail : 4 * flip->fail;
    bool doubt = !(last - next > (moved ? by : clean->fail) * largest);
    for (int64_t i = 0; index && i < n && !doubt; i++) /* a row that may lie elsewhere */
        doubt = l->index_row[i] != 0 &&
                !(fabs((double)scores[i] - (double)(scores[i] >= (float)last ? next : last)) >
                  after->fail * largest);
    if (doubt)
        l->doubt[position] |= CHOSEN;
    free(sorted);
}

void local_picked(judge *j, int layer, int64_t position, const int32_t *rows, int64_t n)
{
    local_layer *l = &j->local[layer];
    for (int64_t i = 0; i < n; i++)
        if (rows[i] >= 0 && rows[i] < j->c->context && l->row[rows[i]] != 0)
            l->doubt[position] |= FLIPPED;
}

bool local_flips(const judge *j, int layer, int64_t position)
{
    return layer >= 0 && j->local[layer].doubt[position] == FLIPPED;
}

bool local_doubts(const judge *j, dsv4_tap_id id, int layer, int64_t position)
{
    if (id == DSV4_TAP_MTP_LOGITS) /* its layer does not tell what it rounds and picks */
        return true;
    return layer >= 0 && id >= DSV4_TAP_ATTN_HEADS && j->local[layer].doubt[position] != 0;
}
