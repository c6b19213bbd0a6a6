/* cmd_inspect.c - what a model or a vector file holds: shapes, types, bytes per class, bits per
 * weight, fingerprint. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "reference/checkpoint/metadata.h"
#include "runner.h"

static const char help[] = "usage: dsv4check inspect FILE|DIR [--check] [--tensors] [--keys]\n"
                           "\n"
                           "A model (directory, safetensors, GGUF): config, tensors by class and "
                           "type, bits per weight. A\n"
                           "vector file: attributes, cases, taps. --check reads every weight, "
                           "refuses the first that is not\n"
                           "a finite number, and prints the weights' sha256. --tensors lists every "
                           "tensor with type, shape and\n"
                           "bytes, --keys the metadata of a GGUF file.\n";

static const char *const allowed[] = {"check", "tensors", "keys", "quiet", NULL};

/* Classes by what a tensor does, read off its name (either naming). */
static const struct {
    const char *part, *class;
} classes[] = {
    {"tid2eid", "tid2eid"},
    {".experts.", "experts"},
    {"_exps", "experts"},
    {"switch_mlp", "experts"},
    {"shared", "shared experts"},
    {"shexp", "shared experts"},
    {"indexer", "indexer"},
    {"compressor", "compressor"},
    {"hc_", "hyper-connections"},
    {"gate", "router"},
    {"exp_probs", "router"},
    {"norm", "norms"},
    {"sink", "attention"},
    {"attn", "attention"},
    {"embd", "embedding"},
    {"embed", "embedding"},
    {"head", "head"},
    {"output", "head"},
    {"_proj", "mtp projections"},
};
enum { N_CLASSES = sizeof classes / sizeof *classes, MAX_ROWS = 128 };

typedef struct {
    const char *class;
    char type[16];
    uint64_t bytes, elements;
    size_t tensors;
} row;

typedef struct {
    row rows[MAX_ROWS];
    size_t n, tensors;
    uint64_t bytes;
} tally;

static bool add_tensor(void *ctx, const dsv4_stored_tensor *t)
{
    tally *s = ctx;
    const char *class = "other";
    for (size_t i = 0; i < N_CLASSES; i++)
        if (strstr(t->name, classes[i].part) != NULL) {
            class = classes[i].class;
            break;
        }
    uint64_t elements = 1;
    for (int i = 0; i < t->ndim; i++)
        elements *= (uint64_t)t->shape[i];
    size_t i = 0;
    while (i < s->n && (s->rows[i].class != class || strcmp(s->rows[i].type, t->type) != 0))
        i++;
    if (i == s->n) {
        if (s->n == MAX_ROWS)
            return false;
        s->rows[s->n++] = (row){.class = class};
        snprintf(s->rows[i].type, sizeof s->rows[i].type, "%s", t->type);
    }
    s->rows[i].bytes += t->bytes;
    s->rows[i].elements += elements;
    s->rows[i].tensors++;
    s->tensors++;
    s->bytes += t->bytes;
    return true;
}

static bool print_tensor(void *ctx, const dsv4_stored_tensor *t)
{
    (void)ctx;
    printf("  %-52s %-8s [", t->name, t->type);
    for (int i = 0; i < t->ndim; i++)
        printf(i > 0 ? ", %lld" : "%lld", (long long)t->shape[i]);
    printf("] %llu bytes\n", (unsigned long long)t->bytes);
    return true;
}

static bool print_key(void *ctx, const char *key, const char *type, const char *value)
{
    (void)ctx;
    printf("  %-48s %-10s %s\n", key, type, value);
    return true;
}

static int by_bytes(const void *a, const void *b)
{
    uint64_t x = ((const row *)a)->bytes, y = ((const row *)b)->bytes;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Parameters by the config's shapes: what the bits per weight are measured on. */
static double count_layer(const dsv4_layer *l)
{
    const dsv4_tensor *list[] = {&l->hc_attn.fn,
                                 &l->hc_ffn.fn,
                                 &l->attn_norm,
                                 &l->ffn_norm,
                                 &l->wq_a,
                                 &l->q_norm,
                                 &l->wq_b,
                                 &l->wkv,
                                 &l->kv_norm,
                                 &l->wo_a,
                                 &l->wo_b,
                                 &l->compressor.wkv,
                                 &l->compressor.wgate,
                                 &l->compressor.ape,
                                 &l->indexer.wq_b,
                                 &l->indexer.weights_proj,
                                 &l->indexer.compressor.wkv,
                                 &l->indexer.compressor.wgate,
                                 &l->indexer.compressor.ape,
                                 &l->gate,
                                 &l->shared_w1,
                                 &l->shared_w2,
                                 &l->shared_w3};
    double n = 0;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        n += (double)list[i]->rows * (double)list[i]->cols;
    return n + 3.0 * (double)l->gate.rows * (double)l->w1[0].rows * (double)l->w1[0].cols;
}

static double parameters(const dsv4_model *m)
{
    double n =
        (double)m->embed.rows * (double)m->embed.cols + (double)m->head.rows * (double)m->head.cols;
    for (int i = 0; i < m->config.num_hidden_layers; i++)
        n += count_layer(&m->layers[i]);
    for (int i = 0; m->mtp != NULL && i < m->config.num_nextn_predict_layers; i++)
        n += count_layer(&m->mtp[i].layer) +
             2.0 * (double)m->mtp[i].e_proj.rows * (double)m->mtp[i].e_proj.cols;
    return n;
}

static dsv4_status inspect_model(const char *path, const options *o, dsv4_error *err)
{
    dsv4_model *m = NULL;
    tally *s = NULL;
    dsv4_status status = dsv4_model_open(path, &m, err);
    if (status != DSV4_OK)
        return status;
    const dsv4_config *c = &m->config;
    double n = parameters(m);
    s = dsv4_alloc(1, sizeof *s, "a tally", err);
    if (s == NULL) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    dsv4_model_each_tensor(m, add_tensor, s);
    qsort(s->rows, s->n, sizeof *s->rows, by_bytes);
    printf("%s: %s, %d layers + %d MTP, %.4g parameters, %zu tensors, %.4g MB, %.3f bits/weight\n",
           path, dsv4_model_container(m), c->num_hidden_layers,
           m->mtp != NULL ? c->num_nextn_predict_layers : 0, n, s->tensors, (double)s->bytes / 1e6,
           8.0 * (double)s->bytes / n);
    printf("  hidden %lld, heads %d x %d (rope %d), q_lora %d, o %d x %d, window %d, vocabulary "
           "%lld\n",
           (long long)c->hidden_size, c->num_attention_heads, c->head_dim, c->qk_rope_head_dim,
           c->q_lora_rank, c->o_groups, c->o_lora_rank, c->sliding_window,
           (long long)c->vocab_size);
    printf("  experts %d of %d + %d shared, width %lld, %d hash layers; indexer %d x %d, top %d; "
           "hc %d\n  compress_ratios",
           c->num_experts_per_tok, c->n_routed_experts, c->n_shared_experts,
           (long long)c->moe_intermediate_size, c->num_hash_layers, c->index_n_heads,
           c->index_head_dim, c->index_topk, c->hc_mult);
    for (int i = 0; i < c->num_hidden_layers + c->num_nextn_predict_layers; i++)
        printf(" %d", c->compress_ratios[i]);
    printf("\n\n  %-18s %-8s %8s %12s %8s\n", "class", "type", "tensors", "bytes", "share");
    for (size_t i = 0; i < s->n; i++)
        printf("  %-18s %-8s %8zu %12llu %7.2f%%\n", s->rows[i].class, s->rows[i].type,
               s->rows[i].tensors, (unsigned long long)s->rows[i].bytes,
               100.0 * (double)s->rows[i].bytes / (double)s->bytes);
    if (o->tensors) {
        printf("\n");
        dsv4_model_each_tensor(m, print_tensor, NULL);
    }
    if (o->keys) {
        printf("\n");
        dsv4_model_each_key(m, print_key, NULL);
    }
    if (o->check) {
        char sha[65];
        status = check_weights(m, err);
        if (status == DSV4_OK)
            status = dsv4_model_sha256(m, sha, err);
        if (status == DSV4_OK)
            printf("\n  every weight is finite; weights_sha256 %s\n", sha);
    }
done:
    free(s);
    dsv4_model_close(m);
    return status;
}

static void print_unknown(void *ctx, const char *path)
{
    (void)ctx;
    printf("    not in the schema: %s\n", path);
}

static dsv4_status inspect_vectors(const char *path, dsv4_error *err)
{
    static const char *const attributes[] = {"schema",   "model",    "weights_sha256",
                                             "producer", "numerics", "made"};
    vec_file *f = NULL;
    dsv4_status status = vec_open(path, &f, err);
    if (status != DSV4_OK)
        return status;
    printf("%s\n", path);
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++) {
        const char *text = vec_attribute(f, attributes[i]);
        printf("  %-15s %s\n", attributes[i], text != NULL ? text : "-");
    }
    for (size_t k = 0; k < vec_case_count(f) && status == DSV4_OK; k++) {
        const vec_case *c = vec_case_at(f, k);
        int64_t values = 0;
        int taps = 0, layers = vec_case_layers(f, c);
        for (int l = -1; l < layers && status == DSV4_OK; l++)
            for (int id = 0; id < DSV4_TAP_COUNT && status == DSV4_OK; id++) {
                vec_tap *t = NULL;
                if ((id >= DSV4_TAP_HEAD_COLLAPSED) != (l < 0))
                    continue;
                status = vec_tap_open(f, c, (dsv4_tap_id)id, l, &t, err);
                if (t != NULL) {
                    taps++;
                    values += t->n_rows * t->row_len;
                }
                vec_tap_close(t);
            }
        printf("  %-18s %-8s %6lld tokens %5lld positions %5d taps %10lld values\n", c->name,
               c->decode ? "decode" : "prefill", (long long)c->context, (long long)c->n_positions,
               taps, (long long)values);
        vec_case_unknown(f, c, print_unknown, NULL);
    }
    vec_close(f);
    return status;
}

int cmd_inspect(int argc, char **argv)
{
    dsv4_error err = {""};
    options o;
    dsv4_status status = options_parse(argc, argv, allowed, &o, &err);
    if (status != DSV4_OK)
        return report_failure(status, &err);
    if (o.help) {
        fputs(help, stdout);
    } else if (o.n_rest != 1) {
        status = dsv4_fail(&err, DSV4_E_INPUT, "inspect needs one file or directory (see --help)");
    } else {
        size_t n = strlen(o.rest[0]);
        bool vectors = n > 3 && strcmp(o.rest[0] + n - 3, ".h5") == 0;
        status = vectors ? inspect_vectors(o.rest[0], &err) : inspect_model(o.rest[0], &o, &err);
    }
    options_free(&o);
    return status == DSV4_OK ? 0 : report_failure(status, &err);
}
