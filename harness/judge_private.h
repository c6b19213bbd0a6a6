/* judge_private.h - the state of one case's judge, shared by judge.c (rows in) and verdicts.c
 * (results out). */
#ifndef DSV4_JUDGE_PRIVATE_H
#define DSV4_JUDGE_PRIVATE_H

#include <math.h>

#include "harness.h"

enum { KEPT_ROWS = 6 };

/* One tap of one layer. */
typedef struct {
    vec_tap *golden; /* NULL = the file does not hold it */
    bool opened;
    bool looked_up; /* golden is what the file holds */
    bool skipped;   /* the glob leaves it out */
    compare_sums clean, after;
    uint8_t *seen;           /* [n_rows] */
    double *row_dd, *row_ee; /* [n_rows] */
    uint8_t *is_after;       /* [n_rows] */
    int64_t n_seen, n_extra; /* rows that arrived; rows golden has no place for */
    int64_t ties, flips, wrong_sets, changed;
    double worst_gap; /* of the wrong sets, in units of the largest score */
    int64_t wrong_position;
    double jaccard;             /* lowest */
    double row_cosine;          /* lowest cosine of a row */
    int64_t misrounded;         /* rows that the engine rounded otherwise than the format says */
    int64_t misrounded_at;      /* position of the first, and its values */
    float *unrounded, *rounded; /* [rounded_n] */
    int64_t rounded_n;
    int64_t off_formula; /* router_weights: rows that do not follow from the engine's own logits */
    double formula_gap;  /* and by how much at most, relative */
    int32_t *sets;       /* selections of the engine [n_rows][row_len], if ids must be kept */
    uint8_t *tied;       /* [n_rows] */
    uint8_t *wrong_row;  /* [n_rows] selections that differ beyond a tie */
    float *scores;       /* scores of the engine [n_rows][scores_width], for the margins */
    int64_t scores_width;
    int64_t top1_lost; /* logits: positions with another top-1 */
    double top1_lead;  /* golden's largest lead among them, in units of the row's rms */
    float *before;     /* unrounded values of the engine [n_rows][before_width] */
    int64_t before_width;
    int block;
    dsv4_rounding kind;
    /* The first wrong rows as both sides have them, for the search for causes [n_kept][width]. */
    void *kept_expected, *kept_actual;
    int64_t kept_width, kept_position[KEPT_ROWS];
    int n_kept;
} slot;

/* Where something discrete went the other way, per layer: the lowest position from which each part
 * of the layer is no longer comparable. INT64_MAX = nowhere. */
typedef struct {
    int64_t whole;                    /* from an earlier layer */
    int64_t scores;                   /* indexer rows or queries rounded the other way */
    int64_t heads;                    /* KV rows rounded the other way */
    int64_t *topk_ties, *router_ties; /* positions */
    size_t n_topk_ties, n_router_ties, cap_topk_ties, cap_router_ties;
} layer_taint;

typedef struct local_layer local_layer; /* local.c */

struct judge {
    const vec_file *golden;
    const vec_case *c;
    judge_options o;
    dsv4_taps taps;
    int layers;         /* layers of the config, MTP not counted */
    slot *slots;        /* [layers + 1][DSV4_TAP_COUNT]; the last layer: taps outside layers */
    layer_taint *taint; /* [layers + 1] */
    float *expected;    /* scratch row */
    float *other;       /* scratch row */
    int64_t scratch;
    char weights[48];   /* column of the budget table */
    double round_noise; /* @rounding; 0 = no rounding in these numerics */
    int64_t events;
    double heard;   /* seconds in the listener, and looking golden taps up elsewhere */
    double read;    /* of them: golden rows, from looking a tap up to handing a row over */
    bool listening; /* in the listener now */
    bool ahead;     /* golden rows were read ahead */
    int64_t read_bytes;
    local_layer *local; /* [layers] where a recorded run that holds the streams of every position
                           of every layer may have chosen otherwise; else NULL */
    bool blind; /* qat or deployed without reports of rounding: flips cannot be told apart */
    dsv4_status status;
    dsv4_error err;
};

static inline slot *judge_slot(const judge *j, int layer, dsv4_tap_id id)
{
    int row = layer < 0 ? j->layers : layer;
    return &j->slots[(size_t)row * DSV4_TAP_COUNT + (size_t)id];
}

/* Taps that decide how later ones are judged: choices, and rows that are rounded; in shadow mode
 * every tap. They are heard even where the glob leaves them out of the report. */
bool judge_decides(const judge *j, dsv4_tap_id id);
/* Golden rows of the whole case, before the engine gets to them: read in one go they take a third
 * of the time that they take between the engine's operators, which leave nothing in the caches.
 * What is wrong with a tap is told when it is asked for; only a failing machine is told here. */
dsv4_status judge_read_ahead(judge *j, int64_t *loaded, dsv4_error *err);
/* Looks a golden tap up, unless that is done. */
dsv4_status judge_look_up(judge *j, slot *s, dsv4_tap_id id, int layer);
/* The golden side of a tap, opened and checked the first time it is asked for; NULL = not in the
 * file, left out by the glob, or an error (j->status). */
slot *judge_open(judge *j, dsv4_tap_id id, int layer);

/* The budget of a tap (or of an @ line) for this case's numerics and weights. */
const budget *judge_budget(const judge *j, const char *tap, rows_class rows);

/* A row's relative L2. */
static inline double slot_row_rel(const slot *s, int64_t row)
{
    double dd = s->row_dd[row], ee = s->row_ee[row];
    return dd == 0 ? 0 : ee == 0 ? INFINITY : sqrt(dd / ee);
}

/* blame.c. Evidence for the blame, gathered as rows arrive: a row that the engine rounded (a breach
 * of the format's rule is a failure by itself); the engine's router weights of golden row `row`. */
void judge_check_rounding(judge *j, dsv4_tap_id id, int layer, int64_t position, dsv4_rounding kind,
                          const float *before, const float *after, int64_t n);
void judge_check_weights(judge *j, int layer, int64_t row, const float *weights, int64_t n);
/* Which block a failing tap points to. */
const char *judge_blame(const judge *j, const slot *s, dsv4_tap_id id, int layer);

/* Was the tap compared, and is it within its budget? A tap that golden does not hold is neither
 * right nor wrong. */
typedef enum { TAP_UNKNOWN, TAP_RIGHT, TAP_WRONG } state_of_tap;
state_of_tap judge_look(const judge *j, int layer, dsv4_tap_id id);

/* local.c. A value of the reference beside a midpoint; its scores; its choice; and what follows. */
bool local_new(judge *j);
void local_free(judge *j);
void local_rounded(judge *j, dsv4_tap_id id, int layer, int64_t position);
void local_scores(judge *j, dsv4_tap_id id, int layer, int64_t position, const float *scores,
                  int64_t n);
void local_picked(judge *j, int layer, int64_t position, const int32_t *rows, int64_t n);
/* Does it rest on a code that may have been rounded the other way, and on nothing else? */
bool local_flips(const judge *j, int layer, int64_t position);
bool local_doubts(const judge *j, dsv4_tap_id id, int layer, int64_t position);

/* Last position that a row (or token) of a tap depends on. */
int64_t judge_reach(const judge *j, dsv4_tap_id id, int layer, int64_t position);

#endif
