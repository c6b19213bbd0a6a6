/* engines.c - who computes: the reference session, or a recorded run that only has to be read. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "optimized/optimized.h"

struct engine {
    char *name;
    const dsv4_model *model;
    const dsv4_ops *ops; /* NULL for dumps and cuda */
    dsv4_numerics numerics;
    vec_file *dump;
    dsv4_cuda *cuda;
    bool cpu; /* the optimised engine, with these options */
    dsv4_engine_options cpu_options;
};

/* The calls behind an engine_session: one table per kind of engine. */
typedef struct {
    void (*set_taps)(void *s, const dsv4_taps *taps);
    dsv4_status (*append)(void *s, const int32_t *tokens, int64_t n, float *logits,
                          dsv4_error *err);
    int64_t (*position)(const void *s);
    void (*reset)(void *s);
    dsv4_status (*save)(const void *s, void **blob, size_t *bytes, dsv4_error *err);
    dsv4_status (*restore)(void *s, const void *blob, size_t bytes, dsv4_error *err);
    void (*free)(void *s);
} session_calls;

struct engine_session {
    const session_calls *calls;
    void *impl;
};

dsv4_status engine_from_ops(const char *name, const dsv4_model *model, const dsv4_ops *ops,
                            dsv4_numerics numerics, engine **out, dsv4_error *err)
{
    engine *e = dsv4_alloc(1, sizeof *e, "an engine", err);
    *out = NULL;
    if (e == NULL)
        return DSV4_E_MACHINE;
    e->model = model;
    e->ops = ops;
    e->numerics = numerics;
    e->name = dsv4_alloc(strlen(name) + 1, 1, "an engine", err);
    if (e->name == NULL) {
        engine_close(e);
        return DSV4_E_MACHINE;
    }
    strcpy(e->name, name);
    *out = e;
    return DSV4_OK;
}

dsv4_ops engine_quick_ops(void)
{
    dsv4_ops ops = *dsv4_ops_reference();
    const dsv4_ops *fast = dsv4_ops_cpu(dsv4_cpu_best());
    if (fast != NULL) {
        ops.linear = fast->linear;
        ops.experts = fast->experts;
        ops.attention = fast->attention;
    }
    return ops;
}

/* cpu[:LEVEL][:float] */
static dsv4_status open_cpu(const char *name, int threads, engine *e, dsv4_error *err)
{
    dsv4_cpu_level level = dsv4_cpu_best();
    char word[16];
    const char *at = name + 3;
    bool level_given = false, exact = false;
    while (*at == ':') {
        size_t n = strcspn(at + 1, ":");
        snprintf(word, sizeof word, "%.*s", (int)(n < sizeof word ? n : sizeof word - 1), at + 1);
        if (!exact && strcmp(word, "float") == 0)
            exact = true;
        else if (!level_given && !exact && dsv4_cpu_level_parse(word, &level))
            level_given = true;
        else
            break;
        at += n + 1;
    }
    if (*at != '\0')
        return dsv4_fail(err, DSV4_E_INPUT,
                         "--engine: expected cpu[:LEVEL][:float] with LEVEL scalar, avx2, avx512 "
                         "or neon, found '%s'",
                         name);
    if (!dsv4_cpu_supported(level))
        return dsv4_fail(err, DSV4_E_INPUT,
                         "--engine %s: this machine does not support it (the best here is cpu:%s)",
                         name, dsv4_cpu_level_name(dsv4_cpu_best()));
    e->cpu = true;
    e->cpu_options = (dsv4_engine_options){.level = level, .threads = threads, .exact = exact};
    e->ops = dsv4_ops_cpu(level);
    return DSV4_OK;
}

/* cuda: the engine on the device. cuda:ops: the reference's session over its operators, one copied
 * call at a time. */
static dsv4_status open_cuda(engine *e, dsv4_error *err)
{
    if (strcmp(e->name, "cuda") == 0)
        return dsv4_cuda_open(e->model, &e->cuda, err);
    dsv4_status status = dsv4_cuda_probe(NULL, 0, err);
    e->ops = dsv4_ops_cuda();
    return status;
}

dsv4_status engine_open(const char *name, const dsv4_model *model, const engine_options *o,
                        engine **out, dsv4_error *err)
{
    engine *e = NULL;
    dsv4_status status = engine_from_ops(name, model, NULL, o->numerics, &e, err);
    *out = NULL;
    if (status != DSV4_OK)
        return status;
    if (strncmp(name, "dump:", 5) == 0)
        status = vec_open(name + 5, &e->dump, err);
    else if (strcmp(name, "ref") == 0)
        e->ops = dsv4_ops_reference();
    else if (strcmp(name, "cpu") == 0 || strncmp(name, "cpu:", 4) == 0)
        status = open_cpu(name, o->threads, e, err);
    else if (strcmp(name, "cuda") == 0 || strcmp(name, "cuda:ops") == 0)
        status = DSV4_OK;
    else
        status = dsv4_fail(err, DSV4_E_INPUT,
                           "--engine: expected ref, cpu[:LEVEL][:float], cuda, cuda:ops or "
                           "dump:FILE.h5, found '%s'",
                           name);
    if (status == DSV4_OK && e->dump == NULL && model == NULL)
        status = dsv4_fail(err, DSV4_E_INPUT, "engine %s computes and needs --model", name);
    if (status == DSV4_OK && strncmp(name, "cuda", 4) == 0)
        status = open_cuda(e, err);
    if (status == DSV4_OK)
        *out = e;
    else
        engine_close(e);
    return status;
}

void engine_close(engine *e)
{
    if (e == NULL)
        return;
    vec_close(e->dump);
    dsv4_cuda_close(e->cuda);
    free(e->name);
    free(e);
}

const char *engine_name(const engine *e)
{
    return e->name;
}

bool engine_is_dump(const engine *e)
{
    return e->dump != NULL;
}

static bool rounds_layer(const dsv4_layer *l)
{
    const dsv4_tensor *list[] = {&l->wq_a,
                                 &l->wq_b,
                                 &l->wkv,
                                 &l->wo_a,
                                 &l->wo_b,
                                 &l->compressor.wkv,
                                 &l->compressor.wgate,
                                 &l->indexer.wq_b,
                                 &l->indexer.weights_proj,
                                 &l->indexer.compressor.wkv,
                                 &l->indexer.compressor.wgate,
                                 &l->gate,
                                 &l->shared_w1,
                                 &l->shared_w2,
                                 &l->shared_w3,
                                 &l->w1[0],
                                 &l->w2[0],
                                 &l->w3[0]};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (list[i]->name != NULL && dsv4_engine_rounds(list[i]->type))
            return true;
    return false;
}

bool engine_rounds_activations(const engine *e)
{
    if (!e->cpu || e->cpu_options.exact || e->model == NULL)
        return false;
    bool rounds = dsv4_engine_rounds(e->model->head.type);
    for (int i = 0; i < e->model->config.num_hidden_layers && !rounds; i++)
        rounds = rounds_layer(&e->model->layers[i]);
    return rounds;
}

bool engine_uses_threads(const engine *e)
{
    return e->cpu;
}

void engine_set_threads(engine *e, int threads)
{
    e->cpu_options.threads = threads;
}

bool engine_computes(const engine *e)
{
    return e->dump == NULL;
}

const dsv4_ops *engine_ops(const engine *e)
{
    return e->ops;
}

const vec_file *engine_dump(const engine *e)
{
    return e->dump;
}

/* ---- conversations ------------------------------------------------------------------------- */

static void ops_set_taps(void *s, const dsv4_taps *taps)
{
    dsv4_session_set_taps(s, taps);
}
static dsv4_status ops_append(void *s, const int32_t *tokens, int64_t n, float *logits,
                              dsv4_error *err)
{
    dsv4_status status = dsv4_session_append(s, tokens, n, logits, err);
    /* Operators cannot fail; those of a device keep what went wrong. */
    return status == DSV4_OK ? dsv4_cuda_take_error(err) : status;
}
static int64_t ops_position(const void *s)
{
    return dsv4_session_position(s);
}
static void ops_reset(void *s)
{
    dsv4_session_reset(s);
}
static dsv4_status ops_save(const void *s, void **blob, size_t *bytes, dsv4_error *err)
{
    return dsv4_session_save(s, blob, bytes, err);
}
static dsv4_status ops_restore(void *s, const void *blob, size_t bytes, dsv4_error *err)
{
    return dsv4_session_restore(s, blob, bytes, err);
}
static void ops_free(void *s)
{
    dsv4_session_free(s);
}

/* The reference's session over an operator table. */
static const session_calls ops_calls = {ops_set_taps, ops_append,  ops_position, ops_reset,
                                        ops_save,     ops_restore, ops_free};

static void cuda_set_taps(void *s, const dsv4_taps *taps)
{
    dsv4_cuda_session_set_taps(s, taps);
}
static dsv4_status cuda_append(void *s, const int32_t *tokens, int64_t n, float *logits,
                               dsv4_error *err)
{
    return dsv4_cuda_session_append(s, tokens, n, logits, err);
}
static int64_t cuda_position(const void *s)
{
    return dsv4_cuda_session_position(s);
}
static void cuda_reset(void *s)
{
    dsv4_cuda_session_reset(s);
}
static dsv4_status cuda_save(const void *s, void **blob, size_t *bytes, dsv4_error *err)
{
    return dsv4_cuda_session_save(s, blob, bytes, err);
}
static dsv4_status cuda_restore(void *s, const void *blob, size_t bytes, dsv4_error *err)
{
    return dsv4_cuda_session_restore(s, blob, bytes, err);
}
static void cuda_free(void *s)
{
    dsv4_cuda_session_free(s);
}

/* A session on the device. */
static const session_calls cuda_calls = {cuda_set_taps, cuda_append,  cuda_position, cuda_reset,
                                         cuda_save,     cuda_restore, cuda_free};

static dsv4_status cuda_session_new(engine *e, const dsv4_session_options *o, engine_session **out,
                                    dsv4_error *err)
{
    engine_session *s = dsv4_alloc(1, sizeof *s, "a session", err);
    dsv4_cuda_session *impl = NULL;
    if (s == NULL)
        return DSV4_E_MACHINE;
    dsv4_status status = dsv4_cuda_session_new(e->cuda, o, &impl, err);
    if (status != DSV4_OK) {
        free(s);
        return status;
    }
    *s = (engine_session){&cuda_calls, impl};
    *out = s;
    return DSV4_OK;
}

/* The optimised CPU engine. */
static void cpu_set_taps(void *s, const dsv4_taps *taps)
{
    dsv4_engine_set_taps(s, taps);
}
static dsv4_status cpu_append(void *s, const int32_t *tokens, int64_t n, float *logits,
                              dsv4_error *err)
{
    return dsv4_engine_append(s, tokens, n, logits, err);
}
static int64_t cpu_position(const void *s)
{
    return dsv4_engine_position(s);
}
static void cpu_reset(void *s)
{
    dsv4_engine_reset(s);
}
static dsv4_status cpu_save(const void *s, void **blob, size_t *bytes, dsv4_error *err)
{
    return dsv4_engine_save(s, blob, bytes, err);
}
static dsv4_status cpu_restore(void *s, const void *blob, size_t bytes, dsv4_error *err)
{
    return dsv4_engine_restore(s, blob, bytes, err);
}
static void cpu_free(void *s)
{
    dsv4_engine_free(s);
}

static const session_calls cpu_calls = {cpu_set_taps, cpu_append,  cpu_position, cpu_reset,
                                        cpu_save,     cpu_restore, cpu_free};

dsv4_status engine_session_new(engine *e, const dsv4_session_options *o, engine_session **out,
                               dsv4_error *err)
{
    *out = NULL;
    if (e->cuda != NULL)
        return cuda_session_new(e, o, out, err);
    if (e->ops == NULL)
        return dsv4_fail(err, DSV4_E_INPUT, "engine %s only reads a recorded run", e->name);
    engine_session *s = dsv4_alloc(1, sizeof *s, "a session", err);
    if (s == NULL)
        return DSV4_E_MACHINE;
    dsv4_session *plain = NULL;
    dsv4_engine *cpu = NULL;
    dsv4_status status = e->cpu ? dsv4_engine_new(e->model, &e->cpu_options, o, &cpu, err)
                                : dsv4_session_new(e->model, e->ops, o, &plain, err);
    if (status != DSV4_OK) {
        free(s);
        return status;
    }
    *s = e->cpu ? (engine_session){&cpu_calls, cpu} : (engine_session){&ops_calls, plain};
    *out = s;
    return DSV4_OK;
}

struct dsv4_engine *engine_session_cpu(engine_session *s)
{
    return s->calls == &cpu_calls ? s->impl : NULL;
}

void engine_session_free(engine_session *s)
{
    if (s == NULL)
        return;
    s->calls->free(s->impl);
    free(s);
}

void engine_session_set_taps(engine_session *s, const dsv4_taps *taps)
{
    s->calls->set_taps(s->impl, taps);
}

dsv4_status engine_session_append(engine_session *s, const int32_t *tokens, int64_t n,
                                  float *logits, dsv4_error *err)
{
    return s->calls->append(s->impl, tokens, n, logits, err);
}

int64_t engine_session_position(const engine_session *s)
{
    return s->calls->position(s->impl);
}

void engine_session_reset(engine_session *s)
{
    s->calls->reset(s->impl);
}

dsv4_status engine_session_save(const engine_session *s, void **blob, size_t *bytes,
                                dsv4_error *err)
{
    return s->calls->save(s->impl, blob, bytes, err);
}

dsv4_status engine_session_restore(engine_session *s, const void *blob, size_t bytes,
                                   dsv4_error *err)
{
    return s->calls->restore(s->impl, blob, bytes, err);
}

/* ---- several listeners on one run ---------------------------------------------------------- */

typedef struct {
    const dsv4_taps *const *taps;
    size_t first, n;       /* listeners whose case has not ended yet */
    uint8_t *heard, *said; /* copies of a value, for listeners that overwrite it */
    size_t size;
    bool failed; /* no memory for them */
} fan;

static bool fan_want(void *ctx, dsv4_tap_id id, int layer, int64_t position)
{
    const fan *f = ctx;
    for (size_t i = f->first; i < f->n; i++)
        if (f->taps[i]->want == NULL || f->taps[i]->want(f->taps[i]->ctx, id, layer, position))
            return true;
    return false;
}

static bool fan_room(fan *f, size_t size)
{
    if (size <= f->size)
        return true;
    free(f->heard);
    free(f->said);
    f->heard = dsv4_alloc(size, 1, "a heard value", NULL);
    f->said = dsv4_alloc(size, 1, "a heard value", NULL);
    f->size = f->heard != NULL && f->said != NULL ? size : 0;
    f->failed = f->failed || f->size == 0;
    return f->size > 0;
}

/* Every listener hears what the engine made, whatever the one before it has put in its place; what
 * follows works on what the last of them said. */
static void fan_tap(void *ctx, dsv4_tap_id id, int layer, int64_t position, void *data, size_t n)
{
    fan *f = ctx;
    size_t size = n * 4; /* float or int32 */
    bool copied = false;
    for (size_t i = f->first; i < f->n; i++) {
        const dsv4_taps *t = f->taps[i];
        if (t->want != NULL && !t->want(t->ctx, id, layer, position))
            continue;
        if (i + 1 == f->n && !copied) { /* alone */
            t->tap(t->ctx, id, layer, position, data, n);
            return;
        }
        if (!copied) {
            if (!fan_room(f, size))
                return;
            memcpy(f->heard, data, size);
            copied = true;
        }
        memcpy(f->said, f->heard, size);
        t->tap(t->ctx, id, layer, position, f->said, n);
        if (memcmp(f->said, f->heard, size) != 0)
            memcpy(data, f->said, size);
    }
}

static void fan_rounded(void *ctx, dsv4_tap_id id, int layer, int64_t position, dsv4_rounding kind,
                        int block, const float *before, const float *after, size_t n)
{
    const fan *f = ctx;
    for (size_t i = f->first; i < f->n; i++)
        if (f->taps[i]->rounded != NULL)
            f->taps[i]->rounded(f->taps[i]->ctx, id, layer, position, kind, block, before, after,
                                n);
}

static dsv4_status run_session(engine *e, const vec_case *const *cases,
                               const dsv4_taps *const *taps, size_t n, bool mtp, int chunk,
                               dsv4_error *err)
{
    const vec_case *longest = cases[n - 1];
    dsv4_session_options wanted = {
        .numerics = e->numerics,
        .max_positions = longest->context,
        .mtp = mtp,
        .chunk = chunk,
    };
    engine_session *s = NULL;
    fan f = {.taps = taps, .n = n};
    dsv4_taps all = {.ctx = &f, .want = fan_want, .tap = fan_tap, .rounded = fan_rounded};
    dsv4_status status = engine_session_new(e, &wanted, &s, err);
    if (status != DSV4_OK)
        return status;
    engine_session_set_taps(s, &all);
    for (size_t i = 0; i < n && status == DSV4_OK; i++) {
        const vec_case *c = cases[i];
        int64_t at = engine_session_position(s);
        int64_t prompt = c->decode ? c->prefill : c->context;
        if (prompt > at)
            status = engine_session_append(s, c->tokens + at, prompt - at, NULL, err);
        for (int64_t t = prompt; c->decode && t < c->context && status == DSV4_OK; t++)
            status = engine_session_append(s, c->tokens + t, 1, NULL, err);
        f.first = i + 1; /* this case has heard everything that is its own */
    }
    if (status == DSV4_OK && f.failed)
        status = dsv4_fail(err, DSV4_E_MACHINE, "out of memory for what several cases hear");
    free(f.heard);
    free(f.said);
    engine_session_free(s);
    return status;
}

/* ---- recorded runs ------------------------------------------------------------------------- */

static dsv4_status replay_tap(const engine *e, const vec_case *c, dsv4_tap_id id, int layer,
                              const dsv4_taps *taps, dsv4_error *err)
{
    vec_tap *t = NULL;
    dsv4_status status = vec_tap_open(e->dump, c, id, layer, &t, err);
    if (status != DSV4_OK || t == NULL)
        return status;
    void *row = dsv4_alloc((size_t)t->row_len, sizeof(float), "a dump row", err);
    if (row == NULL)
        status = DSV4_E_MACHINE;
    for (int64_t i = 0; i < t->n_rows && status == DSV4_OK; i++) {
        if (taps->want != NULL && !taps->want(taps->ctx, id, layer, t->positions[i]))
            continue;
        status = vec_tap_read(t, i, 1, row, err);
        if (status == DSV4_OK)
            taps->tap(taps->ctx, id, layer, t->positions[i], row, (size_t)t->row_len);
    }
    free(row);
    vec_tap_close(t);
    return status;
}

static dsv4_status run_dump(engine *e, const vec_case *golden, const dsv4_taps *taps,
                            dsv4_error *err)
{
    const vec_case *c = vec_case_find(e->dump, golden->name);
    if (c == NULL)
        return DSV4_OK; /* the caller lists it as missing */
    bool same = c->context == golden->context && c->decode == golden->decode &&
                c->prefill == golden->prefill;
    for (int64_t i = 0; same && i < c->context; i++)
        same = c->tokens[i] == golden->tokens[i];
    if (!same)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: /cases/%s: expected the golden case's kind and tokens, found others",
                         vec_path(e->dump), c->name);
    dsv4_status status = DSV4_OK;
    int layers = vec_case_layers(e->dump, c);
    for (int l = 0; l < layers; l++)
        for (int id = 0; id < DSV4_TAP_HEAD_COLLAPSED && status == DSV4_OK; id++)
            status = replay_tap(e, c, (dsv4_tap_id)id, l, taps, err);
    for (int id = DSV4_TAP_HEAD_COLLAPSED; id < DSV4_TAP_COUNT && status == DSV4_OK; id++)
        status = replay_tap(e, c, (dsv4_tap_id)id, -1, taps, err);
    return status;
}

dsv4_status engine_run(engine *e, const vec_case *const *cases, const dsv4_taps *const *taps,
                       size_t n, bool mtp, int chunk, dsv4_error *err)
{
    if (e->dump == NULL)
        return run_session(e, cases, taps, n, mtp, chunk, err);
    dsv4_status status = DSV4_OK;
    for (size_t i = 0; i < n && status == DSV4_OK; i++)
        status = run_dump(e, cases[i], taps[i], err);
    return status;
}
