/* detect_rounding.c - a row that the engine has rounded otherwise than the format says: the rule
 * that makes its rounded values of its own unrounded ones. Needs no model and no golden row. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "causes.h"
#include "hypotheses.h"

static const struct {
    const char *name, *text;
    mistake m;
    dsv4_rounding kind;
} rules[] = {
    {"like:fp8-not", "the values are as they were before", {.fp8 = FP8_NOT}, DSV4_ROUND_FP8},
    {"like:fp8-float-scale",
     "with a scale of largest / 448 the engine's values come out",
     {.fp8 = FP8_FLOAT_SCALE},
     DSV4_ROUND_FP8},
    {"like:fp8-scale-down",
     "with scales rounded down the engine's values come out",
     {.fp8 = FP8_DOWN},
     DSV4_ROUND_FP8},
    {"like:fp8-truncated",
     "with codes cut off the engine's values come out",
     {.fp8 = FP8_TRUNCATED},
     DSV4_ROUND_FP8},
    {"like:fp4-not", "the values are as they were before", {.fp4 = FP4_NOT}, DSV4_ROUND_FP4},
    {"like:fp4-block-128",
     "with one scale for 128 columns the engine's values come out",
     {.fp4 = FP4_BLOCK_128},
     DSV4_ROUND_FP4},
    {"like:fp4-float-scale",
     "with a scale of largest / 6 the engine's values come out",
     {.fp4 = FP4_FLOAT_SCALE},
     DSV4_ROUND_FP4},
    {"like:fp4-first-head",
     "with the first head rounded and the others not, the engine's values come out",
     {.fp4 = FP4_FIRST_HEAD},
     DSV4_ROUND_FP4},
};

void detect_rounding(const judge *j, const slot *s, dsv4_tap_id id, facts *f)
{
    enum { FP8_BLOCK = 64, FP4_BLOCK = 32 };
    int64_t n = s->rounded_n, dim = n;
    if (s->misrounded == 0 || s->unrounded == NULL || s->rounded == NULL)
        return;
    if (id == DSV4_TAP_INDEXER_Q)
        dim = j->o.config->index_head_dim;
    float *x = dsv4_alloc((size_t)n, sizeof *x, "a rounded row", NULL);
    for (size_t i = 0; x != NULL && i < sizeof rules / sizeof *rules; i++) {
        double dd = 0, ee = 0;
        if (rules[i].kind != s->kind)
            continue;
        memcpy(x, s->unrounded, (size_t)n * sizeof *x);
        wrong_rounding(&rules[i].m, s->kind, x, n / dim, dim,
                       s->kind == DSV4_ROUND_FP8 ? FP8_BLOCK : FP4_BLOCK);
        for (int64_t k = 0; k < n; k++) {
            double d = (double)x[k] - (double)s->rounded[k];
            dd += d * d;
            ee += (double)s->rounded[k] * (double)s->rounded[k];
        }
        if (dd <= 1e-6 * ee) /* a thousandth: far below any step */
            facts_add(f, rules[i].name, "%s of position %lld", rules[i].text,
                      (long long)s->misrounded_at);
    }
    free(x);
}
