/* test_checkpoint.c - opening a checkpoint: a valid one runs, and everything that can be wrong with
 * one is refused with a line that names the file and the tensor or key. */
#include "support_checkpoint.h"

/* ---- helpers ------------------------------------------------------------------------------ */

/* Opens what lies in the folder and expects a refusal whose line holds all parts. */
static void refused_at(const char *path, const char *const parts[3])
{
    dsv4_model *m = NULL;
    dsv4_error err = {0};
    dsv4_status status = dsv4_model_open(path, &m, &err);
    ck_assert_msg(status == DSV4_E_INPUT, "status %d, expected a refusal naming '%s'; '%s'",
                  (int)status, parts[0], err.text);
    ck_assert_ptr_null(m);
    for (int i = 0; i < 3 && parts[i] != NULL; i++)
        ck_assert_msg(has_line(err.text, parts[i]), "'%s' is not in '%s'", parts[i], err.text);
    ck_assert_msg(strstr(err.text, folder) != NULL, "no path in '%s'", err.text);
    for (const char *c = err.text; *c != '\0'; c++)
        ck_assert((unsigned char)*c >= 0x20);
}

#define ASSERT_REFUSED(...) refused_at(folder, (const char *const[3]){__VA_ARGS__})

/* Writes a checkpoint in which one tensor is changed by the caller, expects its refusal. */
#define WITH_TENSOR(t_, x_, name_)                                                                 \
    tiny *t_ = tiny_new();                                                                         \
    tiny_tensor *x_ = tiny_find(t_, name_)

static void write_and_free(tiny *t)
{
    tiny_write(t);
    tiny_free(t);
}

/* Logits of a few tokens; every one finite. */
static void run_model(const char *path, dsv4_numerics numerics, float *logits)
{
    const int32_t tokens[6] = {0, 16, 3, 3, 9, 1};
    const dsv4_session_options options = {.numerics = numerics, .max_positions = 8, .mtp = true};
    dsv4_model *m = NULL;
    dsv4_session *s = NULL;
    dsv4_error err = {0};
    ck_assert_msg(dsv4_model_open(path, &m, &err) == DSV4_OK, "%s", err.text);
    ck_assert_msg(dsv4_session_new(m, ops(), &options, &s, &err) == DSV4_OK, "%s", err.text);
    ck_assert_msg(dsv4_session_append(s, tokens, 6, logits, &err) == DSV4_OK, "%s", err.text);
    for (int k = 0; k < TINY_VOCAB; k++)
        ck_assert(isfinite(logits[k]));
    dsv4_session_free(s);
    dsv4_model_close(m);
}

/* ---- what is valid ------------------------------------------------------------------------ */

START_TEST(a_valid_checkpoint_loads_and_runs_in_all_numerics)
{
    float logits[TINY_VOCAB];
    write_and_free(tiny_new());
    for (int n = DSV4_MATH; n <= DSV4_DEPLOYED; n++)
        run_model(folder, (dsv4_numerics)n, logits);
}
END_TEST

START_TEST(files_and_index_and_directory_give_the_same_model)
{
    float one[TINY_VOCAB], other[TINY_VOCAB];
    tiny *t = tiny_new();
    tiny_write(t);
    run_model(folder, DSV4_MATH, one);
    run_model(in_folder("model.safetensors"), DSV4_MATH, other); /* the file alone */
    ck_assert(same_bits(one, other, TINY_VOCAB));
    t->files = 3;
    for (int i = 0; i < t->n_tensors; i++)
        t->tensors[i].file = i % 3;
    tiny_write(t);
    run_model(folder, DSV4_MATH, other); /* by the index; scales apart from their codes */
    ck_assert(same_bits(one, other, TINY_VOCAB));
    remove(in_folder("model.safetensors.index.json"));
    run_model(folder, DSV4_MATH, other); /* every file of the directory */
    ck_assert(same_bits(one, other, TINY_VOCAB));
    float *embed = zeros(TINY_VOCAB * TINY_D); /* twin: another weight is another model */
    memcpy(tiny_find(t, "embed.weight")->data, embed, TINY_VOCAB * TINY_D * 2);
    free(embed);
    tiny_write(t);
    run_model(folder, DSV4_MATH, other);
    ck_assert(!same_bits(one, other, TINY_VOCAB));
    tiny_free(t);
}
END_TEST

typedef struct {
    size_t n;
    uint64_t bytes;
    bool found;
} census;

static bool count_tensor(void *ctx, const dsv4_stored_tensor *t)
{
    census *c = ctx;
    c->n++;
    c->bytes += t->bytes;
    if (strcmp(t->name, "layers.1.attn.wq_b.weight") == 0)
        c->found = t->ndim == 2 && t->shape[0] == TINY_H * TINY_HEAD && t->shape[1] == TINY_Q &&
                   strcmp(t->type, "F8_E4M3") == 0 && strstr(t->file, "model.safetensors") != NULL;
    return c->n < 1000;
}

START_TEST(the_model_says_what_it_is_made_of)
{
    tiny *t = tiny_new();
    dsv4_model *m = NULL;
    dsv4_error err = {0};
    census c = {0};
    char hex[65], again[65];
    tiny_write(t);
    ck_assert_msg(dsv4_model_open(folder, &m, &err) == DSV4_OK, "%s", err.text);
    dsv4_model_each_tensor(m, count_tensor, &c);
    ck_assert_uint_eq(c.n, (size_t)t->n_tensors);
    ck_assert(c.found && c.bytes > 10000);
    ck_assert_str_eq(dsv4_model_container(m), "safetensors");
    ck_assert_str_eq(dsv4_model_path(m), folder);
    ck_assert(m->layers[0].hash && !m->layers[1].hash && m->mtp != NULL);
    ck_assert(m->layers[1].ratio == 4 && m->layers[2].ratio == 128 && m->mtp[0].layer.ratio == 0);
    ck_assert(m->config.bos_token_id == 0 && m->config.eos_token_id == -1);
    ck_assert(dsv4_model_sha256(m, hex, &err) == DSV4_OK);
    dsv4_model_close(m);
    t->tensors[0].data[0] ^= 1; /* twin: one bit */
    tiny_write(t);
    ck_assert(dsv4_model_open(folder, &m, &err) == DSV4_OK);
    ck_assert(dsv4_model_sha256(m, again, &err) == DSV4_OK);
    ck_assert(strlen(hex) == 64 && strspn(hex, "0123456789abcdef") == 64);
    ck_assert_str_ne(hex, again);
    dsv4_model_close(m);
    tiny_free(t);
}
END_TEST

START_TEST(other_float_types_and_int32_tables_are_read_too)
{
    float wide[TINY_VOCAB], narrow[TINY_VOCAB];
    tiny *t = tiny_new();
    tiny_write(t);
    run_model(folder, DSV4_MATH, wide);
    tiny_tensor *table = tiny_find(t, "layers.0.ffn.gate.tid2eid");
    snprintf(table->dtype, sizeof table->dtype, "I32");
    for (int i = 0; i < TINY_VOCAB * TINY_K; i++) /* little-endian: the low half of each */
        memmove(table->data + 4 * i, table->data + 8 * i, 4);
    table->bytes /= 2;
    tiny_tensor *norm = tiny_find(t, "norm.weight"); /* bf16 -> F32, the same numbers */
    uint8_t *widened = calloc(TINY_D, 4);
    ck_assert_ptr_nonnull(widened);
    for (int i = 0; i < TINY_D; i++)
        memcpy(widened + 4 * i + 2, norm->data + 2 * i, 2);
    free(norm->data);
    norm->data = widened;
    norm->bytes *= 2;
    snprintf(norm->dtype, sizeof norm->dtype, "F32");
    write_and_free(t);
    run_model(folder, DSV4_MATH, narrow);
    ck_assert(same_bits(wide, narrow, TINY_VOCAB));
}
END_TEST

START_TEST(the_mtp_layer_may_be_left_out_or_stand_in_a_second_folder)
{
    float logits[TINY_VOCAB];
    char first[sizeof folder];
    tiny *t = tiny_new();
    dsv4_model *m = NULL;
    dsv4_error err = {0};
    t->files = 2;
    for (int i = 0; i < t->n_tensors; i++)
        t->tensors[i].file = strncmp(t->tensors[i].name, "mtp.", 4) == 0;
    tiny_write(t);
    remove(in_folder("model.safetensors.index.json"));
    snprintf(first, sizeof first, "%.255s", in_folder("model-1.safetensors"));
    ck_assert_msg(dsv4_model_open(first, &m, &err) == DSV4_OK, "%s", err.text);
    ck_assert_ptr_null(m->mtp);
    /* A second file that holds no MTP layer: refused, and the model is as before. */
    ck_assert_int_eq(dsv4_model_add_mtp(m, first, &err), DSV4_E_INPUT);
    ck_assert_msg(has_line(err.text, "mtp.0.e_proj.weight is missing"), "%s", err.text);
    ck_assert_ptr_null(m->mtp);
    ck_assert_msg(dsv4_model_add_mtp(m, in_folder("model-2.safetensors"), &err) == DSV4_OK, "%s",
                  err.text);
    ck_assert_ptr_nonnull(m->mtp);
    ck_assert_int_eq(dsv4_model_add_mtp(m, in_folder("model-2.safetensors"), &err), DSV4_E_INPUT);
    ck_assert_msg(has_line(err.text, "has its MTP layer already"), "%s", err.text);
    dsv4_model_close(m);
    run_model(folder, DSV4_MATH, logits);
    tiny_free(t);
}
END_TEST

/* ---- files -------------------------------------------------------------------------------- */

/* The header's length, and the header cut at every eighth of its bytes. */
START_TEST(a_truncated_file_is_refused_wherever_it_ends)
{
    size_t bytes;
    write_and_free(tiny_new());
    uint8_t *data = read_file("model.safetensors", &bytes);
    size_t header = data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16;
    for (int k = 1; k < 8; k++) {
        write_file("model.safetensors", data, (size_t)k);
        ASSERT_REFUSED("model.safetensors");
        write_file("model.safetensors", data, 8 + header * (size_t)k / 8);
        ASSERT_REFUSED("model.safetensors", "header");
        write_file("model.safetensors", data, 8 + header + (bytes - 8 - header) * (size_t)k / 8);
        ASSERT_REFUSED("model.safetensors", "tensor ", "truncated");
    }
    write_file("model.safetensors", data, bytes - 1);
    ASSERT_REFUSED("model.safetensors", "tensor ", "truncated");
    free(data);
}
END_TEST

START_TEST(a_header_of_absurd_length_is_refused)
{
    static const uint64_t lengths[] = {0,         1,          99999999,      100000001,
                                       INT64_MAX, UINT64_MAX, UINT64_MAX - 7};
    size_t bytes;
    write_and_free(tiny_new());
    uint8_t *data = read_file("model.safetensors", &bytes);
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        for (int b = 0; b < 8; b++)
            data[b] = (uint8_t)(lengths[i] >> 8 * b);
        write_file("model.safetensors", data, bytes);
        ASSERT_REFUSED("model.safetensors", "header");
    }
    free(data);
}
END_TEST

START_TEST(a_header_that_is_no_json_is_refused)
{
    static const char *const headers[] = {
        "{\"a\": ",         "garbage", "[]", "\"text\"", "{\"a\": 1} x", "{\"a\": 1, \"a\": 2}",
        "{\"a\n\x01\": 1}", "\xff\xfe"};
    write_and_free(tiny_new());
    for (size_t i = 0; i < COUNT_OF(headers); i++) {
        uint8_t data[64] = {(uint8_t)strlen(headers[i])};
        memcpy(data + 8, headers[i], strlen(headers[i]));
        write_file("model.safetensors", data, 8 + strlen(headers[i]));
        ASSERT_REFUSED("model.safetensors", "header");
    }
}
END_TEST

START_TEST(a_header_of_a_thousand_brackets_is_refused)
{
    enum { DEPTH = 100000 };
    write_and_free(tiny_new());
    uint8_t *data = calloc(8 + DEPTH, 1);
    ck_assert_ptr_nonnull(data);
    memset(data + 8, '[', DEPTH);
    for (int b = 0; b < 3; b++)
        data[b] = (uint8_t)(DEPTH >> 8 * b);
    write_file("model.safetensors", data, 8 + DEPTH);
    ASSERT_REFUSED("model.safetensors", "header");
    free(data);
}
END_TEST

START_TEST(what_is_no_file_is_refused)
{
    write_and_free(tiny_new());
    write_file("model.safetensors", "", 0);
    ASSERT_REFUSED("model.safetensors", "empty");
    remove(in_folder("model.safetensors"));
    ASSERT_REFUSED("no *.safetensors file");
    ck_assert(mkdir(in_folder("model.safetensors"), 0700) == 0);
    ASSERT_REFUSED("model.safetensors", "regular file");
    remove(in_folder("config.json"));
    ASSERT_REFUSED("config.json", "cannot open");
    ck_assert(mkdir(in_folder("config.json"), 0700) == 0);
    ASSERT_REFUSED("config.json", "regular file");
    char missing[300];
    snprintf(missing, sizeof missing, "%.255s", in_folder("nothing-here"));
    refused_at(missing, (const char *const[3]){"nothing-here", "cannot open"});
}
END_TEST

/* ---- the index ---------------------------------------------------------------------------- */

static tiny *two_files(void)
{
    tiny *t = tiny_new();
    t->files = 2;
    for (int i = 0; i < t->n_tensors; i++)
        t->tensors[i].file = i % 2;
    return t;
}

START_TEST(an_index_that_names_a_missing_file_is_refused)
{
    write_and_free(two_files());
    remove(in_folder("model-2.safetensors"));
    ASSERT_REFUSED("model-2.safetensors", "cannot open");
}
END_TEST

START_TEST(an_index_that_lists_a_tensor_its_file_lacks_is_refused)
{
    tiny *t = two_files();
    t->index = "{\"weight_map\": {\"norm.weight\": \"model-1.safetensors\", "
               "\"no.such.tensor\": \"model-2.safetensors\"}}";
    write_and_free(t);
    ASSERT_REFUSED("index.json", "no.such.tensor", "model-2.safetensors");
}
END_TEST

START_TEST(an_index_that_lists_a_tensor_in_another_file_is_refused)
{
    tiny *t = two_files(); /* embed.weight is the first tensor: in the first file */
    t->index = "{\"weight_map\": {\"embed.weight\": \"model-2.safetensors\", "
               "\"head.weight\": \"model-1.safetensors\"}}";
    tiny_write(t);
    ASSERT_REFUSED("index.json", "weight is not in");
    /* A name that is the tail of the right one is not the right one. */
    const uint8_t nothing[10] = {2, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    write_file("2.safetensors", nothing, sizeof nothing);
    t->index = "{\"weight_map\": {\"head.weight\": \"2.safetensors\", "
               "\"mtp.0.enorm.weight\": \"model-2.safetensors\"}}";
    write_file("model.safetensors.index.json", t->index, strlen(t->index));
    ASSERT_REFUSED("index.json", "head.weight is not in 2.safetensors");
    tiny_free(t);
}
END_TEST

START_TEST(an_index_may_not_leave_its_folder)
{
    static const char *const names[] = {
        "/etc/passwd", "../model-1.safetensors", "a/b", "", "..", "."};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        char index[128];
        tiny *t = two_files();
        snprintf(index, sizeof index, "{\"weight_map\": {\"norm.weight\": \"%s\"}}", names[i]);
        t->index = index;
        write_and_free(t);
        ASSERT_REFUSED(names[i], strchr(names[i], '/') || names[i][0] == '\0' ? "no file name"
                                                                              : "regular file");
    }
}
END_TEST

START_TEST(an_index_that_is_no_index_is_refused)
{
    static const char *const texts[] = {"",
                                        "{",
                                        "[]",
                                        "{}",
                                        "{\"weight_map\": []}",
                                        "{\"weight_map\": {\"norm.weight\": 1}}",
                                        "{\"weight_map\": {\"norm.weight\": null}}"};
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        tiny *t = two_files();
        t->index = texts[i];
        write_and_free(t);
        ASSERT_REFUSED("model.safetensors.index.json");
    }
}
END_TEST

START_TEST(a_tensor_in_two_files_is_refused)
{
    size_t bytes;
    tiny *t = tiny_new();
    for (int i = 0; i < t->n_tensors; i++)
        t->tensors[i].file = strcmp(t->tensors[i].name, "head.weight") != 0;
    tiny_write(t); /* model.safetensors: head.weight alone */
    uint8_t *data = read_file("model.safetensors", &bytes);
    tiny_find(t, "head.weight")->file = 0;
    for (int i = 0; i < t->n_tensors; i++)
        t->tensors[i].file = 0;
    write_and_free(t);
    write_file("other.safetensors", data, bytes);
    free(data);
    ASSERT_REFUSED("head.weight is stored twice", "model.safetensors", "other.safetensors");
}
END_TEST

/* ---- tensors ------------------------------------------------------------------------------ */

static const char in_file[] = "model.safetensors";

START_TEST(an_entry_of_the_header_must_be_whole)
{
    static const struct {
        const char *entry, *part;
    } wrong[] = {
        {"1", "expected dtype, shape and data_offsets"},
        {"{}", "expected dtype, shape and data_offsets"},
        {"{\"shape\": [32], \"data_offsets\": [0, 64]}", "expected dtype"},
        {"{\"dtype\": 5, \"shape\": [32], \"data_offsets\": [0, 64]}", "expected dtype"},
        {"{\"dtype\": \"BF16\", \"data_offsets\": [0, 64]}", "expected dtype"},
        {"{\"dtype\": \"BF16\", \"shape\": 32, \"data_offsets\": [0, 64]}", "expected dtype"},
        {"{\"dtype\": \"BF16\", \"shape\": [32]}", "expected dtype"},
        {"{\"dtype\": \"BF16\", \"shape\": [32], \"data_offsets\": [0]}", "expected dtype"},
        {"{\"dtype\": \"BF16\", \"shape\": [32], \"data_offsets\": [0, 64, 9]}", "expected dtype"},
        {"{\"dtype\": \"F77\", \"shape\": [32], \"data_offsets\": [0, 64]}", "unknown dtype F77"},
        {"{\"dtype\": \"\", \"shape\": [32], \"data_offsets\": [0, 64]}", "unknown dtype"},
        {"{\"dtype\": \"BF16\", \"shape\": [-32], \"data_offsets\": [0, 64]}", "axis 0"},
        {"{\"dtype\": \"BF16\", \"shape\": [32.0], \"data_offsets\": [0, 64]}", "axis 0"},
        {"{\"dtype\": \"BF16\", \"shape\": [1, \"32\"], \"data_offsets\": [0, 64]}", "axis 1"},
        {"{\"dtype\": \"BF16\", \"shape\": [4294967296, 4294967296], \"data_offsets\": [0, 64]}",
         "axis 1"},
        {"{\"dtype\": \"BF16\", \"shape\": [1, 1, 1, 1, 32], \"data_offsets\": [0, 64]}", "5 axes"},
        {"{\"dtype\": \"BF16\", \"shape\": [32], \"data_offsets\": [64, 0]}", "data_offsets"},
        {"{\"dtype\": \"BF16\", \"shape\": [32], \"data_offsets\": [-64, 0]}", "data_offsets"},
        {"{\"dtype\": \"BF16\", \"shape\": [32], \"data_offsets\": [0.0, 64]}", "data_offsets"},
        {"{\"dtype\": \"BF16\", \"shape\": [32], \"data_offsets\": [0, 9223372036854775807]}",
         "outside the file"},
        {"{\"dtype\": \"BF16\", \"shape\": [32], \"data_offsets\": [99999999, 100000063]}",
         "outside the file"},
        {"{\"dtype\": \"BF16\", \"shape\": [32], \"data_offsets\": [0, 62]}", "takes 64 bytes"},
        {"{\"dtype\": \"BF16\", \"shape\": [31], \"data_offsets\": [0, 64]}", "takes 62 bytes"},
    };
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        WITH_TENSOR(t, x, "norm.weight");
        x->entry = wrong[i].entry;
        write_and_free(t);
        ASSERT_REFUSED(in_file, "tensor norm.weight", wrong[i].part);
    }
}
END_TEST

START_TEST(tensors_that_share_bytes_are_refused)
{
    WITH_TENSOR(t, x, "norm.weight");
    x->entry = "{\"dtype\": \"BF16\", \"shape\": [32], \"data_offsets\": [2, 66]}";
    write_and_free(t);
    ASSERT_REFUSED(in_file, "norm.weight", "embed.weight"); /* embed lies at 0 */
}
END_TEST

START_TEST(every_tensor_is_required)
{
    tiny *names = tiny_new();
    for (int i = 0; i < names->n_tensors; i++) {
        const char *name = names->tensors[i].name;
        if (strcmp(name, "mtp.0.norm.weight") == 0)
            continue; /* tells whether there is an MTP layer at all */
        if (strstr(name, ".experts.") != NULL && strstr(name, ".experts.2.") == NULL)
            continue; /* one expert stands for all */
        WITH_TENSOR(t, x, name);
        x->file = -1;
        write_and_free(t);
        char named[80]; /* a scale is missed where its weight is */
        snprintf(named, sizeof named, "%s", name);
        ASSERT_REFUSED(named, "missing");
    }
    tiny_free(names);
}
END_TEST

/* Tensors of every kind with an axis that is not the config's. */
START_TEST(a_wrong_shape_is_refused_with_both_shapes)
{
    static const struct {
        const char *name, *expected, *found;
    } shapes[] = {
        {"embed.weight", "expected shape [17, 32]", "found [32, 17]"},
        {"layers.0.attn.wq_b.weight", "expected shape [128, 16]", "found [16, 128]"},
        {"layers.1.attn.compressor.ape", "expected shape [4, 64]", "found [64, 4]"},
        {"layers.2.attn.compressor.ape", "expected shape [128, 32]", "found [32, 128]"},
        {"layers.1.hc_ffn_fn", "expected shape [24, 128]", "found [128, 24]"},
        {"layers.0.ffn.gate.tid2eid", "expected shape [17, 2]", "found [2, 17]"},
    };
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        WITH_TENSOR(t, x, shapes[i].name);
        int64_t rows = x->shape[0];
        x->shape[0] = x->shape[1]; /* transposed: the bytes fit, the shape does not */
        x->shape[1] = rows;
        write_and_free(t);
        dsv4_error err = {0};
        dsv4_model *m;
        ck_assert_int_eq(dsv4_model_open(folder, &m, &err), DSV4_E_INPUT);
        ck_assert_msg(has_line(err.text, shapes[i].name), "%s", err.text);
        if (strstr(shapes[i].name, "wq_b") == NULL) { /* there its scale disagrees first */
            ck_assert_msg(has_line(err.text, shapes[i].expected), "%s", err.text);
            ck_assert_msg(has_line(err.text, shapes[i].found), "%s", err.text);
        }
    }
    WITH_TENSOR(t, x, "layers.0.attn.attn_sink");
    x->ndim = 3;
    x->shape[0] = x->shape[1] = 2;
    x->shape[2] = 1;
    write_and_free(t);
    ASSERT_REFUSED("layers.0.attn.attn_sink", "3 axes");
}
END_TEST

START_TEST(scales_must_be_there_and_fit)
{
    static const struct {
        const char *name, *part;
        int64_t rows, cols;
    } wrong[] = {
        {"layers.0.attn.wq_b.scale", "expected shape [1, 1], found [1, 2]", 1, 2},
        {"layers.0.attn.wq_b.scale", "expected shape [1, 1], found [2, 1]", 2, 1},
        {"layers.2.ffn.experts.1.w2.scale", "expected shape [32, 1], found [1, 32]", 1, 32},
    };
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        WITH_TENSOR(t, x, wrong[i].name);
        free(x->data);
        x->shape[0] = wrong[i].rows;
        x->shape[1] = wrong[i].cols;
        x->bytes = (size_t)(wrong[i].rows * wrong[i].cols);
        x->data = calloc(x->bytes, 1);
        write_and_free(t);
        ASSERT_REFUSED(in_file, wrong[i].name, wrong[i].part);
    }
    WITH_TENSOR(t, x, "layers.0.attn.wq_b.scale");
    snprintf(x->dtype, sizeof x->dtype, "U8");
    write_and_free(t);
    ASSERT_REFUSED(in_file, "layers.0.attn.wq_b.scale", "expected F8_E8M0, found U8");
}
END_TEST

START_TEST(types_that_no_weight_can_have_are_refused)
{
    WITH_TENSOR(t, x, "layers.1.attn.compressor.ape"); /* F32 bytes read as integers */
    snprintf(x->dtype, sizeof x->dtype, "I32");
    write_and_free(t);
    ASSERT_REFUSED("layers.1.attn.compressor.ape", "expected floating-point");

    WITH_TENSOR(u, y, "layers.1.hc_attn_fn");
    snprintf(y->dtype, sizeof y->dtype, "U32");
    write_and_free(u);
    ASSERT_REFUSED(in_file, "layers.1.hc_attn_fn", "dtype U32");

    WITH_TENSOR(v, z, "layers.0.ffn.gate.tid2eid"); /* as many bytes of another type */
    snprintf(z->dtype, sizeof z->dtype, "F32");
    z->bytes /= 2;
    write_and_free(v);
    ASSERT_REFUSED("layers.0.ffn.gate.tid2eid", "expected integers");
}
END_TEST

START_TEST(vectors_must_be_finite)
{
    static const char *const names[] = {"layers.1.attn_norm.weight", "mtp.0.norm.weight",
                                        "layers.2.attn.kv_norm.weight"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        const uint16_t nan = 0x7fc0;
        WITH_TENSOR(t, x, names[i]);
        memcpy(x->data + 2 * 5, &nan, 2);
        write_and_free(t);
        ASSERT_REFUSED(names[i], "element [0][5] is", "finite");
    }
    const float infinite = -INFINITY;
    WITH_TENSOR(t, x, "layers.0.attn.attn_sink");
    memcpy(x->data + 4, &infinite, 4);
    write_and_free(t);
    ASSERT_REFUSED("layers.0.attn.attn_sink", "element [0][1] is -inf");
    WITH_TENSOR(u, y, "layers.2.attn.compressor.ape");
    memcpy(y->data + 4 * (TINY_HEAD * 3 + 2), &infinite, 4);
    write_and_free(u);
    ASSERT_REFUSED("layers.2.attn.compressor.ape", "element [3][2] is -inf");
}
END_TEST

START_TEST(a_hash_table_may_name_real_experts_only)
{
    static const int64_t wrong[] = {TINY_E, -1, INT64_MAX, INT64_MIN, (int64_t)1 << 32};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        WITH_TENSOR(t, x, "layers.0.ffn.gate.tid2eid");
        memcpy(x->data + 8 * (TINY_K * 7 + 1), &wrong[i], 8);
        write_and_free(t);
        ASSERT_REFUSED("layers.0.ffn.gate.tid2eid", "entry [7][1]", "expected 0 to 3");
    }
}
END_TEST

/* ---- config ------------------------------------------------------------------------------- */

static void config_refused(const char *key, const char *value, const char *part)
{
    tiny *t = tiny_new();
    tiny_set(t, key, value);
    write_and_free(t);
    ASSERT_REFUSED("config.json", part);
}

START_TEST(every_required_key_is_required_and_has_its_type)
{
    for (size_t i = 0; i < COUNT_OF(tiny_config); i++) {
        if (!tiny_config[i].required)
            continue;
        const char *key = tiny_config[i].key;
        char named[64];
        snprintf(named, sizeof named, "%s: expected ", key);
        config_refused(key, "", named);
        config_refused(key, "\"text\"", named);
        config_refused(key, "null", named);
        config_refused(key, "-1", named);
    }
}
END_TEST

START_TEST(values_of_the_config_are_checked)
{
    static const char *const wrong[][3] = {
        {"hidden_size", "0", "hidden_size"},
        {"hidden_size", "32.0", "hidden_size: expected an integer, found a real"},
        {"hidden_size", "99999999999999999999", "config.json"},
        {"vocab_size", "9000000000", "vocab_size"},
        {"hc_mult", "17", "hc_mult: expected a value from 1 to 16, found 17"},
        {"compress_ratios", "[0, 4]", "compress_ratios"},
        {"compress_ratios", "[]", "compress_ratios"},
        {"compress_ratios", "[0, \"4\", 128]", "compress_ratios"},
        {"compress_ratios", "[0, -4, 128]", "compress_ratios"},
        {"compress_ratios", "[0, 4.0, 128]", "compress_ratios"},
        {"num_experts_per_tok", "5", "num_experts_per_tok must be at most n_routed_experts"},
        {"num_hash_layers", "4", "num_hash_layers must be at most num_hidden_layers"},
        {"qk_rope_head_dim", "34", "qk_rope_head_dim must be even and at most head_dim"},
        {"qk_rope_head_dim", "15", "qk_rope_head_dim must be even"},
        {"o_groups", "3", "num_attention_heads must be a multiple of o_groups"},
        {"index_head_dim", "48", "index_head_dim must be a power of two"},
        {"index_head_dim", "8", "qk_rope_head_dim must be at most index_head_dim"},
        {"scoring_func", "\"softmax\"", "scoring_func: expected \"sqrtsoftplus\""},
        {"rope_scaling", "[]", "rope_scaling"},
        {"rope_scaling", "{}", "rope_scaling.type"},
        {"rope_scaling", "{\"type\": \"linear\", \"factor\": 2}", "rope_scaling.type"},
        {"rope_scaling", "{\"type\": \"yarn\"}", "factor"},
        {"rope_scaling", "{\"type\": \"yarn\", \"factor\": 0.5}", "factor"},
        {"rope_scaling", "{\"type\": \"yarn\", \"factor\": 16, \"beta_fast\": 32}", "beta_slow"},
    };
    for (size_t i = 0; i < COUNT_OF(wrong); i++)
        config_refused(wrong[i][0], wrong[i][1], wrong[i][2]);
}
END_TEST

START_TEST(a_config_that_is_no_config_is_refused)
{
    static const char *const texts[] = {
        "", "{", "[]", "null", "garbage", "{\"a\": 1,}", "{\"a\": 1, \"a\": 2}", "\xff\xfe{}"};
    write_and_free(tiny_new());
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        write_file("config.json", texts[i], strlen(texts[i]));
        ASSERT_REFUSED("config.json");
    }
    write_file("config.json", "{\"vocab_size\": 17\0}", 19);
    ASSERT_REFUSED("config.json");
}
END_TEST

START_TEST(optional_keys_have_their_defaults)
{
    float logits[TINY_VOCAB];
    dsv4_model *m = NULL;
    dsv4_error err = {0};
    tiny *t = tiny_new();
    tiny_set(t, "num_nextn_predict_layers", "");
    tiny_set(t, "rope_scaling", "null");
    tiny_set(t, "scoring_func", "");
    tiny_set(t, "bos_token_id", "");
    tiny_set(t, "compress_ratios", "[0, 4, 128]");
    tiny_write(t);
    ck_assert_msg(dsv4_model_open(folder, &m, &err) == DSV4_OK, "%s", err.text);
    ck_assert(m->mtp == NULL && m->config.yarn_factor == 1 && m->config.bos_token_id == -1);
    /* Writers of a trunk alone drop the count: a second file may still bring the one layer. */
    ck_assert_msg(dsv4_model_add_mtp(m, folder, &err) == DSV4_OK, "%s", err.text);
    ck_assert(m->mtp != NULL && m->config.num_nextn_predict_layers == 1);
    ck_assert_int_eq(m->mtp[0].layer.ratio, 0);
    ck_assert(m->mtp[0].layer.swiglu_limit == 10);
    dsv4_model_close(m);
    tiny_set(t, "num_nextn_predict_layers", "1"); /* its ratio is not listed: window only */
    tiny_write(t);
    tiny_free(t);
    run_model(folder, DSV4_MATH, logits);
}
END_TEST

int main(void)
{
    TCase *valid = tcase_create("valid"), *files = tcase_create("files");
    TCase *index = tcase_create("index"), *tensors = tcase_create("tensors");
    TCase *config = tcase_create("config");
    tcase_add_test(valid, a_valid_checkpoint_loads_and_runs_in_all_numerics);
    tcase_add_test(valid, files_and_index_and_directory_give_the_same_model);
    tcase_add_test(valid, the_model_says_what_it_is_made_of);
    tcase_add_test(valid, other_float_types_and_int32_tables_are_read_too);
    tcase_add_test(valid, the_mtp_layer_may_be_left_out_or_stand_in_a_second_folder);
    tcase_add_test(files, a_truncated_file_is_refused_wherever_it_ends);
    tcase_add_test(files, a_header_of_absurd_length_is_refused);
    tcase_add_test(files, a_header_that_is_no_json_is_refused);
    tcase_add_test(files, a_header_of_a_thousand_brackets_is_refused);
    tcase_add_test(files, what_is_no_file_is_refused);
    tcase_add_test(index, an_index_that_names_a_missing_file_is_refused);
    tcase_add_test(index, an_index_that_lists_a_tensor_its_file_lacks_is_refused);
    tcase_add_test(index, an_index_that_lists_a_tensor_in_another_file_is_refused);
    tcase_add_test(index, an_index_may_not_leave_its_folder);
    tcase_add_test(index, an_index_that_is_no_index_is_refused);
    tcase_add_test(index, a_tensor_in_two_files_is_refused);
    tcase_add_test(tensors, an_entry_of_the_header_must_be_whole);
    tcase_add_test(tensors, tensors_that_share_bytes_are_refused);
    tcase_add_test(tensors, every_tensor_is_required);
    tcase_add_test(tensors, a_wrong_shape_is_refused_with_both_shapes);
    tcase_add_test(tensors, scales_must_be_there_and_fit);
    tcase_add_test(tensors, types_that_no_weight_can_have_are_refused);
    tcase_add_test(tensors, vectors_must_be_finite);
    tcase_add_test(tensors, a_hash_table_may_name_real_experts_only);
    tcase_add_test(config, every_required_key_is_required_and_has_its_type);
    tcase_add_test(config, values_of_the_config_are_checked);
    tcase_add_test(config, a_config_that_is_no_config_is_refused);
    tcase_add_test(config, optional_keys_have_their_defaults);
    TCase *cases[] = {valid, files, index, tensors, config};
    if (!folder_make())
        return EXIT_FAILURE;
    int status = run_cases("checkpoint", cases, COUNT_OF(cases));
    folder_remove();
    return status;
}
