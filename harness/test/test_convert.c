/* test_convert.c - convert, quantize and synth: values and bytes across containers, the recipes'
 * types, what is refused, and that a failure leaves nothing behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above */
#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "harness/harness.h"
#include "harness/recipes.h"
#include "reference/checkpoint/metadata.h"
#include "reference/checkpoint/mlx.h"

#define STRESS DSV4_VECTORS "/stress"
#define NANO DSV4_VECTORS "/nano"

static char directory[64];
static char message[2048]; /* what the last command wrote to stderr */

static int setup(void **state)
{
    (void)state;
    strcpy(directory, "/tmp/dsv4-convert-XXXXXX");
    return mkdtemp(directory) != NULL ? 0 : -1;
}

static int teardown(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", directory);
    return system(command);
}

static const char *path_of(const char *name)
{
    static char path[8][192];
    static int turn;
    turn = (turn + 1) % 8;
    snprintf(path[turn], sizeof path[turn], "%s/%s", directory, name);
    return path[turn];
}

/* Runs a command with up to ten arguments, NULL-terminated, quietly; keeps its stderr. */
static int run_command(int (*command)(int, char **), const char *name, ...)
{
    char *argv[16] = {(char *)(uintptr_t)name, (char *)(uintptr_t) "--quiet"};
    int argc = 2;
    va_list args;
    va_start(args, name);
    for (const char *a; argc < 15 && (a = va_arg(args, const char *)) != NULL;)
        argv[argc++] = (char *)(uintptr_t)a;
    va_end(args);
    fflush(stderr);
    int keep = dup(STDERR_FILENO);
    FILE *f = tmpfile();
    assert_non_null(f);
    dup2(fileno(f), STDERR_FILENO);
    int code = command(argc, argv);
    fflush(stderr);
    dup2(keep, STDERR_FILENO);
    close(keep);
    rewind(f);
    size_t n = fread(message, 1, sizeof message - 1, f);
    message[n] = '\0';
    fclose(f);
    return code;
}
#define CONVERT(...) run_command(cmd_convert, "convert", __VA_ARGS__, NULL)
#define QUANTIZE(...) run_command(cmd_quantize, "quantize", __VA_ARGS__, NULL)
#define SYNTH(...) run_command(cmd_synth, "synth", __VA_ARGS__, NULL)

static dsv4_model *open_model(const char *path, const char *mtp)
{
    dsv4_error err = {""};
    dsv4_model *m = NULL;
    if (dsv4_model_open(path, &m, &err) != DSV4_OK ||
        (mtp != NULL && dsv4_model_add_mtp(m, mtp, &err) != DSV4_OK))
        fail_msg("%s", err.text);
    return m;
}

/* One line on stderr that says `about`. */
static void said(const char *about)
{
    if (strstr(message, about) == NULL)
        fail_msg("no '%s' in: %s", about, message);
    assert_non_null(strchr(message, '\n'));
    assert_null(strchr(strchr(message, '\n') + 1, '\n'));
}

static void only_files(const char *const *names, size_t n)
{
    size_t seen = 0;
    DIR *d = opendir(directory);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        bool known = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
        for (size_t i = 0; i < n && !known; i++)
            if (strcmp(e->d_name, names[i]) == 0) {
                known = true;
                seen++;
            }
        if (!known)
            fail_msg("left behind: %s", e->d_name);
    }
    closedir(d);
    assert_int_equal(seen, n);
}

/* The logits of the last of 24 tokens. */
static float *logits_of(const char *path, int64_t *n)
{
    int32_t tokens[24];
    dsv4_error err = {""};
    dsv4_session *s = NULL;
    dsv4_model *m = open_model(path, NULL);
    const dsv4_session_options o = {.numerics = DSV4_MATH, .max_positions = 32};
    float *logits = calloc((size_t)m->config.vocab_size, sizeof *logits);
    assert_non_null(logits);
    for (int i = 0; i < 24; i++)
        tokens[i] = (i * 37 + 11) % 250;
    if (dsv4_session_new(m, dsv4_ops_reference(), &o, &s, &err) != DSV4_OK ||
        dsv4_session_append(s, tokens, 24, logits, &err) != DSV4_OK)
        fail_msg("%s", err.text);
    *n = m->config.vocab_size;
    dsv4_session_free(s);
    dsv4_model_close(m);
    return logits;
}

/* Relative distance of b's logits from a's; 0 only if they are equal bit for bit. */
static double logits_apart(const char *a, const char *b)
{
    int64_t n, other;
    float *x = logits_of(a, &n), *y = logits_of(b, &other);
    double difference = 0, norm = 0;
    assert_int_equal(n, other);
    bool same = memcmp(x, y, (size_t)n * sizeof *x) == 0;
    for (int64_t i = 0; i < n; i++) {
        assert_true(isfinite(y[i]));
        difference += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        norm += (double)x[i] * x[i];
    }
    free(x);
    free(y);
    double apart = sqrt(difference / norm);
    return same ? 0 : apart > 0 ? apart : 1e-30;
}

/* Every stored tensor of a release: name, type, shape and bytes are the same. */
static void same_release(const char *a, const char *b)
{
    dsv4_model *x = open_model(a, NULL), *y = open_model(b, NULL);
    weight_list l, k;
    weight_part part = y->mtp != NULL ? WEIGHTS_ALL : WEIGHTS_TRUNK; /* a GGUF trunk has no MTP */
    assert_int_equal(weights_list(x, part, &l, NULL), DSV4_OK);
    assert_int_equal(weights_list(y, part, &k, NULL), DSV4_OK);
    assert_int_equal(l.count, k.count);
    for (size_t i = 0; i < l.count; i++)
        for (int64_t e = 0; e < (l.items[i].experts > 0 ? l.items[i].experts : 1); e++) {
            const dsv4_tensor *p = &l.items[i].views[e], *q = &k.items[i].views[e];
            assert_string_equal(p->name, q->name);
            assert_int_equal(p->type, q->type);
            assert_int_equal(p->rows * p->cols, q->rows * q->cols);
            assert_memory_equal(p->data, q->data, (size_t)p->rows * p->row_bytes);
            if (p->scale != NULL)
                assert_memory_equal(p->scale, q->scale,
                                    (size_t)((p->rows + p->scale_rows - 1) / p->scale_rows) *
                                        p->scale_row_bytes);
        }
    weights_free(&l);
    weights_free(&k);
    dsv4_model_close(x);
    dsv4_model_close(y);
}

/* ---- convert ------------------------------------------------------------------------------ */

static void there_and_back(const char *model)
{
    const char *gguf = path_of("m.gguf"), *mtp = path_of("m-mtp.gguf"), *back = path_of("back");
    const char *mlx = path_of("mlx"), *back2 = path_of("back2");
    assert_int_equal(CONVERT(model, gguf, "--mtp-out", mtp), 0);
    assert_int_equal(CONVERT(gguf, back, "--mtp", mtp, "--shards", "2"), 0);
    same_release(model, back);
    assert_true(logits_apart(model, gguf) == 0);
    assert_int_equal(CONVERT(model, mlx, "--to", "mlx"), 0);
    dsv4_model *m = open_model(mlx, NULL);
    assert_string_equal(dsv4_model_container(m), "mlx");
    assert_non_null(m->mtp);
    dsv4_model_close(m);
    assert_true(logits_apart(model, mlx) == 0);
    assert_int_equal(CONVERT(mlx, back2), 0);
    same_release(model, back2);
}

static void stress_there_and_back(void **state)
{
    (void)state;
    there_and_back(STRESS);
}

/* FP8 and FP4 of real weights, and blocks whose scale the values do not tell. */
static void nano_there_and_back(void **state)
{
    const char *gguf = path_of("n.gguf"), *mtp = path_of("n-mtp.gguf"), *back = path_of("back");
    dsv4_key_value v;
    (void)state;
    assert_int_equal(CONVERT(NANO, gguf, "--mtp-out", mtp), 0);
    assert_int_equal(CONVERT(gguf, back, "--mtp", mtp, "--shards", "2"), 0);
    same_release(NANO, back);
    dsv4_model *m = open_model(gguf, NULL);
    assert_true(dsv4_model_key(m, SCALE_NOTES_KEY, &v));
    assert_int_equal(m->layers[0].w1[0].type, DSV4_MXFP4);
    assert_int_equal(m->layers[0].wq_a.type, DSV4_BF16);
    dsv4_model_close(m);
}

/* Random codes: every block is its own case. FP4 is found again behind BF16, and MLX's mode mxfp4
 * carries it as it is. */
static void codes_there_and_back(void **state)
{
    const char *release = path_of("r"), *gguf = path_of("b.gguf"), *back = path_of("back");
    const char *mlx = path_of("mlx"), *back2 = path_of("back2");
    (void)state;
    assert_int_equal(SYNTH(release, "--shape", "nano", "--layers", "1", "--recipe", "release"), 0);
    assert_int_equal(QUANTIZE(release, gguf, "--recipe", "bf16"), 0);
    assert_int_equal(CONVERT(gguf, back), 0);
    same_release(release, back);
    assert_int_equal(CONVERT(release, mlx, "--to", "mlx"), 0);
    assert_int_equal(CONVERT(mlx, back2), 0);
    same_release(release, back2);
}

static void f32_has_the_same_logits(void **state)
{
    const char *f32 = path_of("f32.gguf"), *mlx = path_of("mlx"), *again = path_of("again.gguf");
    (void)state;
    assert_int_equal(QUANTIZE(STRESS, f32, "--recipe", "f32", "--shards", "3"), 0);
    const char *first = path_of("f32-00001-of-00003.gguf");
    assert_true(logits_apart(STRESS, first) == 0);
    assert_true(logits_apart(STRESS, path_of("f32-00003-of-00003.gguf")) == 0);
    /* MLX's values are exact in F32 only. */
    assert_int_equal(QUANTIZE(STRESS, mlx, "--recipe", "mlx8"), 0);
    assert_int_equal(CONVERT(mlx, again), 0);
    assert_true(logits_apart(mlx, again) == 0);
}

/* ---- recipes ------------------------------------------------------------------------------ */

static void recipes_stay_near(void **state)
{
    /* Distance of the logits from the unquantised model's: a format's error, with room. */
    static const struct {
        const char *recipe, *out, *open;
        double at_most;
    } all[] = {
        {"f16", "f16.gguf", "f16.gguf", 0.01},
        {"q8", "q8.gguf", "q8.gguf", 0.2},
        {"q4", "q4.gguf", "q4.gguf", 1.2},
        {"q2", "q2.gguf", "q2.gguf", 1.5},
        {"mlx8", "mlx8", "mlx8", 0.3},
        {"mlx4", "mlx4", "mlx4", 1.5},
        {"iq1", "iq1.gguf", "iq1-00002-of-00002.gguf", 2.0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        assert_int_equal(QUANTIZE(STRESS, path_of(all[i].out), "--recipe", all[i].recipe), 0);
        double apart = logits_apart(STRESS, path_of(all[i].open));
        if (!(apart > 0 && apart < all[i].at_most))
            fail_msg("%s: %g, expected at most %g", all[i].recipe, apart, all[i].at_most);
    }
}

static void recipe_types(void **state)
{
    static const struct {
        const char *recipe, *weight;
        weight_class kind;
        int64_t cols;
        dsv4_type type;
    } expected[] = {
        {"q2", "layers.0.ffn.experts.0.w1.weight", W_EXPERT_GATE_UP, 4096, DSV4_IQ2_XXS},
        {"q2", "layers.0.ffn.experts.0.w2.weight", W_EXPERT_DOWN, 2048, DSV4_Q2_K},
        {"q2", "mtp.0.ffn.experts.0.w1.weight", W_EXPERT_GATE_UP, 4096, DSV4_Q4_K},
        {"q2", "layers.0.attn.wq_a.weight", W_ATTENTION, 4096, DSV4_Q8_0},
        {"q2", "embed.weight", W_EMBED, 4096, DSV4_F16},
        {"q2", "head.weight", W_HEAD, 4096, DSV4_Q8_0},
        {"q2", "layers.0.ffn.gate.weight", W_ROUTER, 4096, DSV4_F16},
        {"q2", "layers.0.hc_attn_fn", W_HC_FN, 16384, DSV4_F16},
        {"q2", "layers.0.attn_norm.weight", W_NORM, 4096, DSV4_F32},
        {"q2", "layers.0.ffn.gate.tid2eid", W_TABLE, 6, DSV4_I32},
        {"q2", "layers.0.ffn.experts.0.w1.weight", W_EXPERT_GATE_UP, 160, DSV4_Q4_0},
        {"q4", "layers.0.ffn.experts.0.w1.weight", W_EXPERT_GATE_UP, 160, DSV4_Q5_0},
        {"q8", "layers.0.attn.wq_b.weight", W_ATTENTION, 80, DSV4_F16},
        {"iq1", "embed.weight", W_EMBED, 4096, DSV4_Q2_K},
        {"iq1", "head.weight", W_HEAD, 4096, DSV4_Q5_K},
        {"iq1", "layers.0.ffn.gate.weight", W_ROUTER, 4096, DSV4_F32},
        {"mlx4", "layers.0.attn.wq_b.weight", W_ATTENTION, 80, DSV4_BF16},
        {"release", "layers.0.attn.wq_b.weight", W_ATTENTION, 80, DSV4_FP8},
        {"release", "layers.0.ffn.experts.0.w1.weight", W_EXPERT_GATE_UP, 4096, DSV4_FP4},
    };
    (void)state;
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        weight w = {.kind = expected[i].kind, .rows = 8, .cols = expected[i].cols};
        snprintf(w.name, sizeof w.name, "%s", expected[i].weight);
        encoding e = recipe_encoding(recipe_find(expected[i].recipe), &w);
        if (e.type != expected[i].type)
            fail_msg("%s %s: %s", expected[i].recipe, w.name, dsv4_format_of(e.type)->name);
    }
}

static void mlx_names(void **state)
{
    static const struct {
        const char *official, *name;
        int expert;
    } all[] = {
        {"embed.weight", "model.embed_tokens.weight", -1},
        {"head.weight", "lm_head.weight", -1},
        {"hc_head_fn", "model.hc_head.fn", -1},
        {"layers.3.hc_ffn_base", "model.layers.3.ffn_hc.base", -1},
        {"layers.3.attn.wq_a.weight", "model.layers.3.attn.wq_a.weight", -1},
        {"layers.3.ffn.gate.bias", "model.layers.3.ffn.gate.e_score_correction_bias", -1},
        {"layers.3.ffn.experts.17.w2.weight", "model.layers.3.ffn.switch_mlp.down_proj.weight", 17},
        {"layers.3.ffn.shared_experts.w3.weight",
         "model.layers.3.ffn.shared_experts.up_proj.weight", -1},
        {"mtp.0.ffn.experts.1.w1.weight", "mtp.0.ffn.switch_mlp.gate_proj.weight", 1},
    };
    char name[128];
    int64_t expert;
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        assert_true(mlx_name(all[i].official, name, sizeof name, &expert));
        assert_string_equal(name, all[i].name);
        assert_int_equal(expert, all[i].expert);
    }
    assert_false(mlx_name("nothing", name, sizeof name, &expert));
}

/* Replaces the first occurrence of a text in a file by one of the same length. */
static void patch(const char *path, const char *from, const char *to)
{
    static char text[1 << 20];
    size_t length = strlen(from);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(length, strlen(to));
    size_t n = fread(text, 1, sizeof text, f), at = 0;
    while (at + length <= n && memcmp(text + at, from, length) != 0)
        at++;
    assert_true(at + length <= n);
    fseek(f, (long)at, SEEK_SET);
    fwrite(to, 1, length, f);
    fclose(f);
}

static void mlx_is_checked(void **state)
{
    static const struct {
        const char *file, *from, *to, *about;
    } all[] = {
        {"m/config.json", "\"bits\": 4", "\"bits\": 3", "quantization of model.embed_tokens"},
        {"m/config.json", "\"group_size\": 32", "\"group_size\": 64", "group of 64"},
        {"m/config.json", "\"bits\": 4", "\"bits\": 8", "columns"},
        {"m/model.safetensors", "1.attn.wkv.scales", "1.attn.wkv.scalez", "wkv.scales is missing"},
        {"m/model.safetensors", "1.attn.wkv.biases", "1.attn.wkv.biasez", "wkv.biases is missing"},
    };
    (void)state;
    assert_int_equal(QUANTIZE(STRESS, path_of("m"), "--recipe", "mlx4"), 0);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        dsv4_error err = {""};
        dsv4_model *m = NULL;
        patch(path_of(all[i].file), all[i].from, all[i].to);
        assert_int_equal(dsv4_model_open(path_of("m"), &m, &err), DSV4_E_INPUT);
        if (strstr(err.text, all[i].about) == NULL)
            fail_msg("no '%s' in: %s", all[i].about, err.text);
        patch(path_of(all[i].file), all[i].to, all[i].from);
    }
    dsv4_model_close(open_model(path_of("m"), NULL));
    /* The release's names are found too. */
    patch(path_of("m/model.safetensors"), "\"lm_head.weight\"", "\"head.weight\"   ");
    patch(path_of("m/model.safetensors"), "\"lm_head.scales\"", "\"head.scales\"   ");
    patch(path_of("m/model.safetensors"), "\"lm_head.biases\"", "\"head.biases\"   ");
    dsv4_model *m = open_model(path_of("m"), NULL);
    assert_string_equal(m->head.name, "head.weight");
    dsv4_model_close(m);
}

static void importance_steers(void **state)
{
    /* An imatrix of our own: entry, calls, values. The columns that count come out better. */
    FILE *f = fopen(path_of("im.dat"), "wb");
    const char *entry = "blk.0.ffn_gate_exps.weight";
    const int32_t head[] = {1, (int32_t)strlen(entry)}, tail[] = {4, 256};
    dsv4_error err = {""};
    imatrix *m = NULL;
    const float *values;
    (void)state;
    assert_non_null(f);
    fwrite(head, 4, 2, f);
    fwrite(entry, 1, strlen(entry), f);
    fwrite(tail, 4, 2, f);
    for (int i = 0; i < 256; i++) {
        float v = i < 64 ? 400.0f : 4.0f;
        fwrite(&v, 4, 1, f);
    }
    fclose(f);
    assert_int_equal(imatrix_open(path_of("im.dat"), &m, &err), DSV4_OK);
    assert_int_equal(imatrix_entries(m), 1);
    assert_int_equal(imatrix_find(m, entry, 3, 12, 256, &values, &err), DSV4_OK);
    assert_true(values[0] == 100.0f && values[255] == 1.0f);
    assert_int_equal(imatrix_find(m, "other", 0, 1, 256, &values, &err), DSV4_OK);
    assert_null(values);
    assert_int_equal(imatrix_find(m, entry, 0, 12, 128, &values, &err), DSV4_E_INPUT);
    imatrix_free(m);
    assert_int_equal(truncate(path_of("im.dat"), 100), 0);
    assert_int_equal(imatrix_open(path_of("im.dat"), &m, &err), DSV4_E_INPUT);
}

static bool count_tokens(void *ctx, const char *key, const char *type, const char *value)
{
    (void)value;
    if (strcmp(key, "tokenizer.ggml.tokens") == 0 && strcmp(type, "arr[str]") == 0)
        *(bool *)ctx = true;
    return true;
}

static void tokenizer_goes_along(void **state)
{
    bool found = false;
    dsv4_key_value v;
    (void)state;
    assert_int_equal(CONVERT(NANO, path_of("n.gguf")), 0);
    assert_int_equal(CONVERT(path_of("n.gguf"), path_of("n2.gguf")), 0);
    dsv4_model *m = open_model(path_of("n2.gguf"), NULL);
    dsv4_model_each_key(m, count_tokens, &found);
    assert_true(found);
    assert_true(dsv4_model_key(m, "tokenizer.ggml.tokens", &v));
    assert_int_equal(v.count, m->config.vocab_size);
    assert_true(dsv4_model_key(m, "tokenizer.ggml.merges", &v));
    assert_int_equal(m->config.bos_token_id, 0);
    assert_int_equal(m->config.eos_token_id, 1);
    dsv4_model_close(m);
}

/* ---- synth -------------------------------------------------------------------------------- */

static void synth_makes_models(void **state)
{
    static const char *const all[] = {"q2", "q4", "iq1", "mlx4", "mlx8", "release"};
    int64_t n;
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char out[64], in[64];
        bool files = recipe_find(all[i])->to == TO_GGUF, iq1 = strcmp(all[i], "iq1") == 0;
        snprintf(out, sizeof out, files ? "%s.gguf" : "%s", all[i]);
        snprintf(in, sizeof in, iq1 ? "iq1-00001-of-00002.gguf" : "%s", out);
        assert_int_equal(SYNTH(path_of(out), "--shape", "nano", "--layers", "2", "--recipe", all[i],
                               "--seed", "7"),
                         0);
        float *logits = logits_of(path_of(in), &n);
        double sum = 0;
        for (int64_t k = 0; k < n; k++)
            sum += (double)logits[k] * logits[k];
        assert_true(isfinite(sum) && sum > 0 && sqrt(sum / (double)n) < 100);
        free(logits);
        dsv4_model *m = open_model(path_of(in), NULL);
        float row[256];
        double squares = 0; /* decoded weights have the size asked for: 0.02 */
        for (int64_t r = 0; r < 64; r++) {
            dsv4_tensor_row(&m->layers[1].w1[0], r, row);
            for (int c = 0; c < 256; c++)
                squares += (double)row[c] * row[c];
        }
        double rms = sqrt(squares / (64 * 256));
        if (!(rms > 0.012 && rms < 0.03))
            fail_msg("%s: rms %g", all[i], rms);
        dsv4_model_close(m);
    }
}

static void synth_is_seeded(void **state)
{
    char a[65], b[65], c[65];
    (void)state;
    static const char *const seeds[] = {"1", "1", "2"};
    char *hex[] = {a, b, c};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(SYNTH(path_of("s.gguf"), "--shape", "nano", "--layers", "1", "--recipe",
                               "q4", "--seed", seeds[i]),
                         0);
        assert_int_equal(file_sha256(path_of("s.gguf"), hex[i], NULL), DSV4_OK);
    }
    assert_string_equal(a, b);
    assert_string_not_equal(a, c);
}

/* ---- failures ----------------------------------------------------------------------------- */

static void refuses_usage(void **state)
{
    (void)state;
    assert_int_equal(QUANTIZE(STRESS, path_of("x.gguf"), "--recipe", "q3"), 2);
    said("unknown recipe");
    assert_int_equal(QUANTIZE(STRESS, path_of("x.gguf")), 2);
    said("--recipe");
    assert_int_equal(CONVERT(STRESS), 2);
    said("expected IN and OUT");
    assert_int_equal(CONVERT(STRESS, path_of("x"), "--to", "onnx"), 2);
    said("--to");
    assert_int_equal(CONVERT(STRESS, path_of("x"), "--bogus"), 2);
    said("unknown option");
    assert_int_equal(CONVERT(path_of("none"), path_of("x.gguf")), 2);
    said("none");
    assert_int_equal(CONVERT(STRESS, path_of("no/such/x.gguf")), 2);
    said("cannot create");
    assert_int_equal(CONVERT(STRESS, path_of("x"), "--mtp-out", path_of("y.gguf")), 2);
    said("--mtp-out");
    assert_int_equal(CONVERT(STRESS, "/dev/null", "--to", "gguf"), 2);
    said("/dev/null: is there already");
    assert_int_equal(CONVERT(STRESS, directory, "--to", "gguf"), 2);
    said("no regular file");
    assert_int_equal(SYNTH(path_of("x.gguf"), "--recipe", "q2", "--shape", "huge"), 2);
    said("--shape");
    assert_int_equal(
        QUANTIZE(STRESS, path_of("x.gguf"), "--recipe", "q2", "--imatrix", path_of("none")), 2);
    said("importance matrix");
    only_files(NULL, 0);
}

static void keeps_directories(void **state)
{
    static const char *const left[] = {"out"};
    (void)state;
    assert_int_equal(CONVERT(STRESS, path_of("out")), 0);
    assert_int_equal(CONVERT(STRESS, path_of("out")), 2);
    said("is there already");
    only_files(left, 1);
    same_release(STRESS, path_of("out"));
}

/* Patches one value of a bf16 matrix in an otherwise good file. */
static void refuses_nan(void **state)
{
    static const char *const left[] = {"m.gguf"};
    (void)state;
    assert_int_equal(CONVERT(STRESS, path_of("m.gguf")), 0);
    dsv4_model *m = open_model(path_of("m.gguf"), NULL);
    const dsv4_tensor *t = &m->layers[2].w3[1];
    /* The data of a mapped file: its offset is found by its bytes' distance from the embedding's.
     */
    ptrdiff_t from_embed = t->data + (size_t)t->row0 * t->row_bytes - m->embed.data;
    size_t embed_bytes = (size_t)m->embed.rows * m->embed.row_bytes;
    FILE *f = fopen(path_of("m.gguf"), "r+b");
    assert_non_null(f);
    uint8_t *probe = malloc(1 << 16);
    assert_non_null(probe);
    size_t n = fread(probe, 1, 1 << 16, f), start = 0;
    for (; start + 64 < n; start += 32)
        if (memcmp(probe + start, m->embed.data, 64) == 0)
            break;
    assert_true(start + 64 < n && embed_bytes > 64);
    free(probe);
    const uint16_t nan = 0x7fc0;
    fseek(f, (long)start + (long)from_embed + 6, SEEK_SET);
    fwrite(&nan, 2, 1, f);
    fclose(f);
    dsv4_model_close(m);
    assert_int_equal(QUANTIZE(path_of("m.gguf"), path_of("q.gguf"), "--recipe", "q4"), 2);
    said("layers.2.ffn.experts.1.w3.weight: element [0][3] is nan");
    assert_int_equal(QUANTIZE(path_of("m.gguf"), path_of("q"), "--recipe", "mlx4"), 2);
    said("layers.2.ffn.experts.1.w3.weight");
    only_files(left, 1);
}

static void full_disk_leaves_nothing(void **state)
{
    struct rlimit before, small;
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 3 << 20;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int file = CONVERT(STRESS, path_of("m.gguf"));
    int folder = CONVERT(STRESS, path_of("m"));
    int shards = SYNTH(path_of("s.gguf"), "--shape", "nano", "--recipe", "q2", "--shards", "3");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(file, 3);
    assert_int_equal(folder, 3);
    assert_int_equal(shards, 3);
    said("s-0000");
    only_files(NULL, 0);
}

static void lack_of_memory_leaves_nothing(void **state)
{
    int failures = 0;
    (void)state;
    for (long n = 400;; n += 151) { /* the model itself takes the first few hundred */
        dsv4_alloc_fail_at(n);
        int code = QUANTIZE(STRESS, path_of("m"), "--recipe", "mlx8", "--threads", "1");
        dsv4_alloc_fail_at(0);
        if (code == 0)
            break;
        assert_int_equal(code, 3);
        only_files(NULL, 0);
        failures++;
    }
    assert_true(failures > 5);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(stress_there_and_back),
        TEST(nano_there_and_back),
        TEST(codes_there_and_back),
        TEST(f32_has_the_same_logits),
        TEST(recipes_stay_near),
        cmocka_unit_test(recipe_types),
        cmocka_unit_test(mlx_names),
        TEST(mlx_is_checked),
        TEST(importance_steers),
        TEST(tokenizer_goes_along),
        TEST(synth_makes_models),
        TEST(synth_is_seeded),
        TEST(refuses_usage),
        TEST(keeps_directories),
        TEST(refuses_nan),
        TEST(full_disk_leaves_nothing),
        TEST(lack_of_memory_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
