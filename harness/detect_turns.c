/* detect_turns.c - which rotation an engine made: the golden row is turned back by the right angle,
 * then turned as known mistakes would, and held against the engine's row. Needs the config alone,
 * so it works on dumps. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "causes.h"

typedef struct {
    const float *plain, *compressed; /* inv_freq [half] of the two tables */
    const dsv4_config *c;
    int half;
    int64_t position; /* of the row's angle */
    int64_t row;      /* row taps: its number; else the position */
    bool first;       /* the layer has no compressor: its table is the plain one */
} turn_place;

/* The angles [half] that a mistake takes; false = the mistake makes no sense here. */
typedef bool (*angle_fn)(const turn_place *p, double *angle);

static double at(const turn_place *p, bool compressed, int64_t position, int k)
{
    float angle = (float)position * (compressed ? p->compressed : p->plain)[k];
    return (double)angle;
}

static bool turn_not(const turn_place *p, double *angle)
{
    for (int k = 0; k < p->half; k++)
        angle[k] = 0;
    return true;
}

static bool turn_other_way(const turn_place *p, double *angle)
{
    for (int k = 0; k < p->half; k++)
        angle[k] = -at(p, !p->first, p->position, k);
    return true;
}

static bool turn_position(const turn_place *p, double *angle, int64_t position)
{
    for (int k = 0; k < p->half; k++)
        angle[k] = at(p, !p->first, position, k);
    return true;
}

static bool turn_late(const turn_place *p, double *angle)
{
    return turn_position(p, angle, p->position + 1);
}

static bool turn_early(const turn_place *p, double *angle)
{
    return turn_position(p, angle, p->position - 1);
}

static bool turn_doubled(const turn_place *p, double *angle)
{
    return turn_position(p, angle, 2 * p->position);
}

static bool turn_row_number(const turn_place *p, double *angle)
{
    return p->row != p->position && turn_position(p, angle, p->row);
}

static bool turn_row_end(const turn_place *p, double *angle)
{
    return p->row > 0 && p->row != p->position &&
           turn_position(p, angle, p->position + p->position / p->row - 1);
}

static bool turn_other_table(const turn_place *p, double *angle)
{
    for (int k = 0; k < p->half; k++)
        angle[k] = at(p, p->first, p->position, k);
    return true;
}

/* Another config's compressed table. */
static bool turn_config(const turn_place *p, double *angle, const dsv4_config *other)
{
    float *inv = dsv4_alloc((size_t)p->half, sizeof *inv, "a rotary table", NULL);
    if (inv == NULL || p->first) {
        free(inv);
        return false;
    }
    dsv4_rope_inv_freq(other, true, inv);
    for (int k = 0; k < p->half; k++)
        angle[k] = (double)((float)p->position * inv[k]);
    free(inv);
    return true;
}

static bool turn_no_yarn(const turn_place *p, double *angle)
{
    dsv4_config c = *p->c;
    c.yarn_factor = 1;
    return turn_config(p, angle, &c);
}

static bool turn_base_40000(const turn_place *p, double *angle)
{
    dsv4_config c = *p->c;
    c.compress_rope_theta = 40000;
    return turn_config(p, angle, &c);
}

/* The base that is searched for. */
static _Thread_local double some_base;

static bool turn_some_base(const turn_place *p, double *angle)
{
    dsv4_config c = *p->c;
    float *inv = dsv4_alloc((size_t)p->half, sizeof *inv, "a rotary table", NULL);
    if (inv == NULL)
        return false;
    c.rope_theta = c.compress_rope_theta = some_base;
    dsv4_rope_inv_freq(&c, !p->first, inv);
    for (int k = 0; k < p->half; k++)
        angle[k] = (double)((float)p->position * inv[k]);
    free(inv);
    return true;
}

static bool turn_plain_base(const turn_place *p, double *angle)
{
    dsv4_config c = *p->c;
    c.compress_rope_theta = c.rope_theta;
    return turn_config(p, angle, &c);
}

static bool turn_original(const turn_place *p, double *angle)
{
    dsv4_config c = *p->c;
    c.yarn_original_positions = 4096;
    return turn_config(p, angle, &c);
}

static bool turn_betas(const turn_place *p, double *angle)
{
    dsv4_config c = *p->c;
    c.yarn_beta_fast = p->c->yarn_beta_slow;
    c.yarn_beta_slow = p->c->yarn_beta_fast;
    return turn_config(p, angle, &c);
}

static bool turn_all_slow(const turn_place *p, double *angle)
{
    dsv4_config c = *p->c;
    c.yarn_factor = 1;
    if (!turn_config(p, angle, &c))
        return false;
    for (int k = 0; k < p->half; k++)
        angle[k] /= p->c->yarn_factor;
    return true;
}

static bool turn_inverted(const turn_place *p, double *angle)
{
    for (int k = 0; k < p->half; k++)
        angle[k] = (double)p->position / (double)(p->first ? p->plain : p->compressed)[k];
    return true;
}

static bool turn_bf16(const turn_place *p, double *angle)
{
    for (int k = 0; k < p->half; k++) {
        float f = (p->first ? p->plain : p->compressed)[k];
        dsv4_ops_reference()->round_bf16(&f, 1);
        angle[k] = (double)((float)p->position * f);
    }
    return true;
}

static bool turn_right(const turn_place *p, double *angle)
{
    return turn_position(p, angle, p->position);
}

typedef enum { PAIRS, HALVES, FIRST_DIMS, TABLE_BF16, LOUDER } layout;

static const struct {
    const char *name;
    angle_fn angle;
    layout layout;
} turns[] = {
    {"turn:not", turn_not, PAIRS},
    {"turn:other-way", turn_other_way, PAIRS},
    {"turn:half-split", turn_right, HALVES},
    {"turn:first-dims", turn_right, FIRST_DIMS},
    {"turn:one-late", turn_late, PAIRS},
    {"turn:one-early", turn_early, PAIRS},
    {"turn:doubled", turn_doubled, PAIRS},
    {"turn:row-number", turn_row_number, PAIRS},
    {"turn:row-end", turn_row_end, PAIRS},
    {"turn:other-table", turn_other_table, PAIRS},
    {"turn:no-yarn", turn_no_yarn, PAIRS},
    {"turn:base-40000", turn_base_40000, PAIRS},
    {"turn:plain-base", turn_plain_base, PAIRS},
    {"turn:original-4096", turn_original, PAIRS},
    {"turn:betas-exchanged", turn_betas, PAIRS},
    {"turn:all-stretched", turn_all_slow, PAIRS},
    {"turn:inverted", turn_inverted, PAIRS},
    {"turn:bf16-frequencies", turn_bf16, PAIRS},
    {"turn:bf16-table", turn_right, TABLE_BF16},
    {"turn:louder", turn_right, LOUDER},
    {"turn:some-base", turn_some_base, PAIRS},
};
enum { TURNS = sizeof turns / sizeof *turns, SOME_BASE = TURNS - 1 };

/* One head: golden `e` [d] turned back and turned anew into y. */
static void turn_head(const turn_place *p, const float *e, int d, const double *angle, layout how,
                      double *y)
{
    int r = 2 * p->half, first = how == FIRST_DIMS ? 0 : d - r;
    double loud = how == LOUDER ? 0.1 * log(p->c->yarn_factor) + 1 : 1;
    for (int k = 0; k < d; k++)
        y[k] = (double)e[k];
    for (int k = 0; k < p->half; k++) { /* back */
        double right = at(p, !p->first, p->position, k), c = cos(right), s = sin(right);
        double a = (double)e[d - r + 2 * k], b = (double)e[d - r + 2 * k + 1];
        y[d - r + 2 * k] = a * c + b * s;
        y[d - r + 2 * k + 1] = b * c - a * s;
    }
    for (int k = 0; k < p->half; k++) {
        int x = first + (how == HALVES ? k : 2 * k), z = how == HALVES ? x + p->half : x + 1;
        double c = cos(angle[k]) * loud, s = sin(angle[k]) * loud, a = y[x], b = y[z];
        if (how == TABLE_BF16) {
            float rounded[2] = {(float)c, (float)s};
            dsv4_ops_reference()->round_bf16(rounded, 2);
            c = (double)rounded[0];
            s = (double)rounded[1];
        }
        y[x] = a * c - b * s;
        y[z] = a * s + b * c;
    }
}

/* Difference of the kept rows from the engine's, as a share of golden's. */
static double share_of(const judge *j, const slot *s, dsv4_tap_id id, int layer, int which,
                       turn_place *p, double *y, double *angle)
{
    int d = (int)(s->golden->ndim > 1 ? s->golden->shape[1] : s->kept_width);
    double dd = 0, gg = 0;
    for (int row = 0; row < s->n_kept; row++) {
        p->row = s->kept_position[row];
        p->position = p->row;
        if (dsv4_tap_is_row(id))
            p->position *= id == DSV4_TAP_INDEXER_KV ? 4 : j->o.config->compress_ratios[layer];
        if (!turns[which].angle(p, angle))
            return INFINITY;
        for (int64_t h = 0; h < s->kept_width / d; h++) {
            int64_t base = row * s->kept_width + h * d;
            const float *e = (const float *)s->kept_expected + base;
            const float *a = (const float *)s->kept_actual + base;
            turn_head(p, e, d, angle, turns[which].layout, y);
            for (int k = 0; k < d; k++) {
                dd += (y[k] - (double)a[k]) * (y[k] - (double)a[k]);
                gg += ((double)e[k] - (double)a[k]) * ((double)e[k] - (double)a[k]);
            }
        }
    }
    return gg > 0 ? sqrt(dd / gg) : INFINITY;
}

/* The base that brings golden's rows nearest to the engine's: the best of a grid, then narrowed. */
static double search_base(const judge *j, const slot *s, dsv4_tap_id id, int layer, turn_place *p,
                          double *y, double *angle)
{
    enum { STEPS = 160, ROUNDS = 40 };
    double step = log(1e4) / STEPS, at = log(1e3), best = INFINITY, centre = at;
    for (int i = 0; i <= STEPS; i++) {
        some_base = exp(at + i * step);
        double share = share_of(j, s, id, layer, SOME_BASE, p, y, angle);
        if (share < best) {
            best = share;
            centre = at + i * step;
        }
    }
    for (int i = 0; i < ROUNDS && step > 1e-9; i++) {
        double found = centre;
        for (int side = -1; side <= 1; side += 2) {
            some_base = exp(centre + side * step / 2);
            double share = share_of(j, s, id, layer, SOME_BASE, p, y, angle);
            if (share < best) {
                best = share;
                found = centre + side * step / 2;
            }
        }
        centre = found;
        step /= 2;
    }
    some_base = exp(centre);
    return best;
}

void detect_turns(const judge *j, const slot *s, dsv4_tap_id id, int layer, facts *f)
{
    enum { NEARER = 10, MUCH = 5 };
    const dsv4_config *c = j->o.config;
    bool index = id == DSV4_TAP_INDEXER_Q || id == DSV4_TAP_INDEXER_KV;
    bool turned = id == DSV4_TAP_Q || id == DSV4_TAP_KV || id == DSV4_TAP_COMPRESSED_KV || index;
    if (!turned || layer < 0 || s->n_kept == 0 || s->golden == NULL ||
        (index && j->o.numerics != DSV4_MATH)) /* Hadamard and FP4 hide the angles */
        return;
    int half = c->qk_rope_head_dim / 2;
    float *plain = dsv4_alloc((size_t)half, sizeof *plain, "a rotary table", NULL);
    float *compressed = dsv4_alloc((size_t)half, sizeof *compressed, "a rotary table", NULL);
    double *angle = dsv4_alloc((size_t)half, sizeof *angle, "angles", NULL);
    double *y = dsv4_alloc((size_t)s->kept_width, sizeof *y, "a turned row", NULL);
    if (plain != NULL && compressed != NULL && angle != NULL && y != NULL) {
        dsv4_rope_inv_freq(c, false, plain);
        dsv4_rope_inv_freq(c, true, compressed);
        turn_place p = {.plain = plain,
                        .compressed = compressed,
                        .c = c,
                        .half = half,
                        .first = c->compress_ratios[layer] == 0};
        double share[TURNS], best = INFINITY;
        for (int i = 0; i < SOME_BASE; i++) {
            share[i] = share_of(j, s, id, layer, i, &p, y, angle);
            best = fmin(best, share[i]);
        }
        share[SOME_BASE] = INFINITY;
        if (best * NEARER > 1) { /* none of the known ones: another base? */
            best = share[SOME_BASE] = search_base(j, s, id, layer, &p, y, angle);
            if (best * NEARER <= 1)
                facts_add(f, "turn:some-base",
                          "with a base of %.6g golden's row, turned anew, comes within %.2g of the "
                          "engine's, its own distance being 1",
                          some_base, best);
        }
        for (int i = 0; i < TURNS; i++) /* what is far nearer than the others is meant */
            if (share[i] * NEARER <= 1 && share[i] <= MUCH * best)
                facts_add(f, turns[i].name,
                          "turned so, golden's row comes within %.2g of the engine's, its own "
                          "distance being 1",
                          share[i]);
    }
    free(plain);
    free(compressed);
    free(angle);
    free(y);
}
