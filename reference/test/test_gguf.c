/* test_gguf.c - the GGUF reader: what it accepts, what it refuses and how, shards, both forms of
 * the MTP layer, and files damaged at every byte. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reference/checkpoint/metadata.h"
#include "support_gguf.h"

/* ---- files and assertions ----------------------------------------------------------------- */

static char directory[64];
static buffer image;

static void setup(void)
{
    strcpy(directory, "/tmp/dsv4-gguf-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    ck_assert_int_eq(system(command), 0);
}

static const char *path_of(const char *name)
{
    static char path[4][160];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", directory, name);
    return path[turn];
}

static void save(const char *name, const buffer *b)
{
    FILE *f = fopen(path_of(name), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(b->bytes, 1, b->n, f), b->n);
    ck_assert_int_eq(fclose(f), 0);
}

static void write_file(const char *name, const edit *e)
{
    build(e, &image);
    save(name, &image);
}

static dsv4_model *open_ok(const char *name)
{
    dsv4_error err = {""};
    dsv4_model *m = NULL;
    dsv4_status status = dsv4_model_open(path_of(name), &m, &err);
    ck_assert_msg(status == DSV4_OK, "%s", err.text);
    return m;
}

/* One line that names the file and says `about`. */
static void open_fails(const char *name, const char *about)
{
    dsv4_error err = {""};
    dsv4_model *m = NULL;
    dsv4_status status = dsv4_model_open(path_of(name), &m, &err);
    ck_assert_msg(status == DSV4_E_INPUT, "status %d: %s", (int)status, err.text);
    ck_assert_ptr_null(m);
    ck_assert_msg(strstr(err.text, directory) != NULL, "no file in: %s", err.text);
    ck_assert_msg(strstr(err.text, about) != NULL, "no '%s' in: %s", about, err.text);
    ck_assert_ptr_null(strchr(err.text, '\n'));
}

static void refuse(const edit *e, const char *about)
{
    write_file("bad.gguf", e);
    open_fails("bad.gguf", about);
}

/* A view holds the elements of the stored tensor from `first` on. */
static void holds(const dsv4_tensor *t, const char *name, uint64_t first)
{
    float row[64];
    ck_assert_ptr_nonnull(t->name);
    ck_assert_str_eq(t->name, name);
    for (int64_t r = 0; r < t->rows; r++) {
        dsv4_tensor_row(t, r, row);
        for (int64_t c = 0; c < t->cols; c++)
            ck_assert_float_eq(row[c], value_of(name, first + (uint64_t)(r * t->cols + c)));
    }
}

/* ---- what is accepted --------------------------------------------------------------------- */

START_TEST(reads_every_tensor)
{
    for (uint32_t version = 2; version <= 3; version++) {
        write_file("model.gguf", &(edit){.version = version, .layers = 2, .all_types = true});
        dsv4_model *m = open_ok("model.gguf");
        ck_assert_str_eq(dsv4_model_container(m), "gguf");
        const dsv4_config *c = &m->config;
        ck_assert_int_eq(c->num_hidden_layers, 2);
        ck_assert_int_eq(c->num_nextn_predict_layers, 1);
        ck_assert_ptr_null(m->mtp); /* announced, not in the file */
        ck_assert_int_eq(c->vocab_size, V);
        ck_assert_int_eq(c->head_dim, HD);
        ck_assert_float_eq(c->rms_norm_eps, 1e-6f);
        ck_assert_float_eq(c->swiglu_limit[2], 10.0f);
        ck_assert_double_eq(c->yarn_factor, 16);
        ck_assert_double_eq(c->yarn_beta_fast, 32);
        holds(&m->embed, "token_embd.weight", 0);
        holds(&m->head, "output.weight", 0);
        holds(&m->hc_head.scale, "output_hc_scale.weight", 0);
        const dsv4_layer *l = &m->layers[1];
        holds(&l->hc_ffn.fn, "blk.1.hc_ffn_fn.weight", 0);
        holds(&l->attn_sink, "blk.1.attn_sinks.weight", 0);
        holds(&l->q_norm, "blk.1.attn_q_a_norm.weight", 0);
        holds(&l->wkv, "blk.1.attn_kv.weight", 0);
        holds(&l->wo_a, "blk.1.attn_output_a.weight", 0);
        holds(&l->gate_bias, "blk.1.exp_probs_b.bias", 0);
        holds(&l->shared_w2, "blk.1.ffn_down_shexp.weight", 0);
        for (int e = 0; e < E; e++) {
            holds(&l->w1[e], "blk.1.ffn_gate_exps.weight", (uint64_t)e * F * D);
            holds(&l->w2[e], "blk.1.ffn_down_exps.weight", (uint64_t)e * F * D);
            holds(&l->w3[e], "blk.1.ffn_up_exps.weight", (uint64_t)e * F * D);
        }
        dsv4_model_close(m);
    }
}
END_TEST

static bool find_key(void *ctx, const char *name, const char *type, const char *value)
{
    char line[256], *found = ctx;
    snprintf(line, sizeof line, "%s|%s|%s\n", name, type, value);
    strncat(found, line, 8191 - strlen(found));
    return true;
}

START_TEST(lists_keys)
{
    char all[8192] = "";
    dsv4_key_value v;
    write_file("model.gguf", &(edit){.all_types = true});
    dsv4_model *m = open_ok("model.gguf");
    dsv4_model_each_key(m, find_key, all);
    ck_assert_ptr_nonnull(strstr(all, "general.architecture|str|deepseek4\n"));
    ck_assert_ptr_nonnull(strstr(all, "deepseek4.vocab_size|u32|6\n"));
    ck_assert_ptr_nonnull(strstr(all, "x.strings|arr[str]|[one?, ]\n"));
    ck_assert_ptr_nonnull(strstr(all, "x.nested|arr[arr]|[...] (1 items)\n"));
    ck_assert_ptr_nonnull(strstr(all, "x.empty|arr[f32]|[]\n"));
    ck_assert_ptr_nonnull(strstr(all, "x.i16|i16|1\n"));
    ck_assert_ptr_nonnull(strstr(all, "x.bool|bool|true\n"));
    ck_assert(dsv4_model_key(m, "x.strings", &v));
    ck_assert_uint_eq(v.count, 2);
    ck_assert_uint_eq(v.bytes, 20);
    ck_assert(!dsv4_model_key(m, "x.none", &v));
    dsv4_model_close(m);
}
END_TEST

START_TEST(tolerates_writers)
{
    const uint64_t wide = D;
    const int32_t narrow = D;
    const double epsilon = 1e-5;
    const struct {
        const char *key;
        uint32_t type;
        const void *bytes;
        size_t n;
    } same[] = {
        {"deepseek4.embedding_length", U64, &wide, 8},
        {"deepseek4.embedding_length", I32, &narrow, 4},
        {"deepseek4.hyper_connection.epsilon", F64, &epsilon, 8},
    };
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        write_file("model.gguf", &(edit){.key = same[i].key,
                                         .key_type = same[i].type,
                                         .key_bytes = same[i].bytes,
                                         .key_size = same[i].n});
        dsv4_model_close(open_ok("model.gguf"));
    }
    /* vocab_size from the embedding; nextn_predict_layers not written. */
    write_file("model.gguf", &(edit){.skip = "deepseek4.vocab_size", .alignment = 64});
    dsv4_model *m = open_ok("model.gguf");
    ck_assert_int_eq(m->config.vocab_size, V);
    dsv4_model_close(m);
    /* A clamp per layer. */
    buffer *array = calloc(1, sizeof *array);
    const float limits[2] = {7, 9};
    put32(array, F32);
    put64(array, 2);
    put(array, limits, sizeof limits);
    write_file("model.gguf", &(edit){.key = "deepseek4.swiglu_clamp_exp",
                                     .key_type = ARR,
                                     .key_bytes = array->bytes,
                                     .key_size = array->n});
    m = open_ok("model.gguf");
    ck_assert_float_eq(m->layers[0].swiglu_limit, 7);
    dsv4_model_close(m);
    free(array);
}
END_TEST

/* ---- what is refused ---------------------------------------------------------------------- */

START_TEST(names_missing_keys)
{
    static const char *const required[] = {
        "general.architecture",
        "deepseek4.context_length",
        "deepseek4.embedding_length",
        "deepseek4.block_count",
        "deepseek4.attention.head_count",
        "deepseek4.attention.key_length",
        "deepseek4.attention.layer_norm_rms_epsilon",
        "deepseek4.attention.q_lora_rank",
        "deepseek4.attention.output_lora_rank",
        "deepseek4.attention.output_group_count",
        "deepseek4.attention.sliding_window",
        "deepseek4.attention.compress_ratios",
        "deepseek4.attention.compress_rope_freq_base",
        "deepseek4.attention.indexer.head_count",
        "deepseek4.attention.indexer.key_length",
        "deepseek4.attention.indexer.top_k",
        "deepseek4.rope.dimension_count",
        "deepseek4.rope.freq_base",
        "deepseek4.rope.scaling.factor",
        "deepseek4.rope.scaling.original_context_length",
        "deepseek4.expert_count",
        "deepseek4.expert_used_count",
        "deepseek4.expert_shared_count",
        "deepseek4.expert_feed_forward_length",
        "deepseek4.expert_weights_scale",
        "deepseek4.hash_layer_count",
        "deepseek4.swiglu_clamp_exp",
        "deepseek4.hyper_connection.count",
        "deepseek4.hyper_connection.sinkhorn_iterations",
        "deepseek4.hyper_connection.epsilon",
    };
    for (size_t i = 0; i < sizeof required / sizeof *required; i++)
        refuse(&(edit){.skip = required[i]}, required[i]);
}
END_TEST

START_TEST(names_wrong_keys)
{
    const uint32_t two = 2;
    const uint64_t huge = UINT64_MAX;
    const float nan = __builtin_nanf("");
    const struct {
        const char *key;
        uint32_t type;
        const void *bytes;
        size_t n;
        const char *about;
    } wrong[] = {
        {"general.architecture", STR, "\5\0\0\0\0\0\0\0llama", 13, "found llama"},
        {"deepseek4.block_count", STR, "\1\0\0\0\0\0\0\0x", 9, "expected an integer"},
        {"deepseek4.block_count", U64, &huge, 8, "deepseek4.block_count"},
        {"deepseek4.attention.head_count_kv", U32, &two, 4, "head_count_kv: expected 1"},
        {"deepseek4.attention.value_length", U32, &two, 4, "value_length: expected 4"},
        {"deepseek4.expert_gating_func", U32, &two, 4, "expert_gating_func: expected 4"},
        {"deepseek4.rope.scaling.type", STR, "\6\0\0\0\0\0\0\0linear", 14, "found linear"},
        {"deepseek4.hyper_connection.epsilon", F32, &nan, 4, "hyper_connection.epsilon"},
        {"deepseek4.hyper_connection.epsilon", U32, &two, 4, "expected a real number"},
        {"deepseek4.swiglu_clamp_exp", ARR, "\6\0\0\0\0\0\0\0\0\0\0\0", 12, "at least 1 entries"},
        {"deepseek4.hash_layer_count", U32, &two, 4, "hash_layer_count must be"},
        {"deepseek4.vocab_size", 13, &two, 4, "key deepseek4.vocab_size: unknown value type 13"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        refuse(&(edit){.key = wrong[i].key,
                       .key_type = wrong[i].type,
                       .key_bytes = wrong[i].bytes,
                       .key_size = wrong[i].n},
               wrong[i].about);
}
END_TEST

START_TEST(refuses_bad_headers)
{
    const uint64_t past = 1ull << 40;
    uint8_t array[12] = {U32}, strings[12] = {STR}, nest[96];
    const uint64_t many = 1ull << 60;
    memcpy(array + 4, &many, 8);
    memcpy(strings + 4, &many, 8);
    refuse(&(edit){.version = 1}, "version 2 or 3, found 1");
    refuse(&(edit){.version = 4}, "version 2 or 3, found 4");
    refuse(&(edit){.version = 3u << 24}, "big-endian");
    refuse(&(edit){.n_tensors = 1ull << 60}, "do not fit");
    refuse(&(edit){.n_keys = 1ull << 60}, "do not fit");
    refuse(
        &(edit){.key = "deepseek4.vocab_size", .key_type = STR, .key_bytes = &past, .key_size = 8},
        "key deepseek4.vocab_size");
    refuse(
        &(edit){.key = "deepseek4.vocab_size", .key_type = ARR, .key_bytes = array, .key_size = 12},
        "longer than the file");
    refuse(
        &(edit){
            .key = "deepseek4.vocab_size", .key_type = ARR, .key_bytes = strings, .key_size = 12},
        "longer than the file");
    for (int i = 0; i < 8; i++) { /* an array of one array of one array ... */
        const uint64_t one = 1;
        memset(nest + 12 * i, 0, 4);
        nest[12 * i] = ARR;
        memcpy(nest + 12 * i + 4, &one, 8);
    }
    refuse(&(edit){.key = "deepseek4.vocab_size",
                   .key_type = ARR,
                   .key_bytes = nest,
                   .key_size = sizeof nest},
           "nested too deeply");
    refuse(&(edit){.alignment = 48}, "power of two");
    build(&(edit){0}, &image);
    image.bytes[0] = 'g';
    save("bad.gguf", &image);
    open_fails("bad.gguf", "magic");
    image.n = 0;
    save("bad.gguf", &image);
    open_fails("bad.gguf", "empty");
}
END_TEST

START_TEST(refuses_bad_tensors)
{
    static const char q[] = "blk.0.attn_q_a.weight";
    refuse(&(edit){.tensor = q, .type = 200, .type_set = true},
           "blk.0.attn_q_a.weight: unknown type");
    refuse(&(edit){.tensor = q, .type = T_Q8_0, .type_set = true}, "multiple of Q8_0's block");
    refuse(&(edit){.tensor = q, .type = T_I32, .type_set = true}, "found integers");
    refuse(&(edit){.tensor = q, .ndim = 5}, "5 axes");
    refuse(&(edit){.tensor = q, .dim = 1ull << 62}, q);
    refuse(&(edit){.tensor = q, .dim = UINT64_MAX}, q);
    refuse(&(edit){.tensor = q, .dim = 4}, "expected shape");
    refuse(&(edit){.tensor = q, .shift = 1ull << 50}, "outside the file");
    refuse(&(edit){.tensor = q, .shift = 1ull << 63}, "outside the file");
    refuse(&(edit){.tensor = q, .shift = 4}, "alignment");
    refuse(&(edit){.tensor = q, .rename = "blk.0.attn_kv.weight"}, "stored twice");
    refuse(&(edit){.tensor = q, .rename = "x"}, "attn.wq_a.weight is missing");
    refuse(&(edit){.tensor = "blk.0.ffn_up_exps.weight", .ndim = 2}, "experts, expected 2");
    refuse(&(edit){.skip = "output.weight"}, "missing");
}
END_TEST

START_TEST(refuses_twin_keys)
{
    /* Two empty keys of one length become twins by overwriting the second's name. */
    build(&(edit){.all_types = true}, &image);
    int seen = 0;
    for (size_t i = 0; i + 8 < image.n; i++)
        if (memcmp(image.bytes + i, "x.i16", 5) == 0 || memcmp(image.bytes + i, "x.u16", 5) == 0) {
            memcpy(image.bytes + i, "x.w16", 5);
            seen++;
        }
    ck_assert_int_eq(seen, 2);
    save("bad.gguf", &image);
    open_fails("bad.gguf", "key x.w16 is stored twice");
}
END_TEST

/* ---- shards ------------------------------------------------------------------------------- */

static void write_shards(int n, const edit *change, int which)
{
    char name[64];
    for (int i = 0; i < n; i++) {
        edit e = i == which ? *change : (edit){0};
        e.shard = i;
        e.shards = n;
        snprintf(name, sizeof name, "m-%05d-of-%05d.gguf", i + 1, n);
        write_file(name, &e);
    }
}

START_TEST(finds_all_shards)
{
    write_shards(3, &(edit){0}, -1);
    static const char *const any[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf",
                                      "m-00003-of-00003.gguf"};
    for (int i = 0; i < 3; i++) {
        dsv4_model *m = open_ok(any[i]);
        holds(&m->embed, "token_embd.weight", 0);
        holds(&m->layers[0].w3[1], "blk.0.ffn_up_exps.weight", F * D);
        ck_assert_str_eq(dsv4_model_path(m), path_of(any[i]));
        dsv4_model_close(m);
    }
    ck_assert_int_eq(unlink(path_of(any[1])), 0);
    open_fails(any[0], "m-00002-of-00003.gguf: shard 2 of 3 is missing");
    open_fails(any[2], "m-00002-of-00003.gguf: shard 2 of 3 is missing");
}
END_TEST

START_TEST(refuses_wrong_shards)
{
    write_shards(2, &(edit){.split_no = -1}, 1);
    open_fails("m-00001-of-00002.gguf", "m-00002-of-00002.gguf: expected shard split.no 1");
    write_shards(2, &(edit){.split_count = 1}, 1);
    open_fails("m-00001-of-00002.gguf", "split.count 2, found 1 of 3");
    write_shards(2, &(edit){.skip = "blk.0.ffn_norm.weight"}, 1);
    open_fails("m-00001-of-00002.gguf", "split.tensors.count");
    write_file("other.gguf", &(edit){.shards = 2});
    open_fails("other.gguf", "does not end in -NNNNN-of-00002.gguf");
}
END_TEST

/* ---- the MTP layer ------------------------------------------------------------------------ */

START_TEST(reads_mtp_file)
{
    dsv4_error err = {""};
    write_file("model.gguf", &(edit){.skip = "deepseek4.nextn_predict_layers"});
    write_file("mtp.gguf", &(edit){.mtp_only = true});
    open_fails("mtp.gguf", "MTP layer alone");
    dsv4_model *m = open_ok("model.gguf");
    ck_assert_int_eq(m->config.num_nextn_predict_layers, 0);
    ck_assert_int_eq(dsv4_model_add_mtp(m, path_of("model.gguf"), &err), DSV4_E_INPUT);
    ck_assert_ptr_nonnull(strstr(err.text, "mtp.0."));
    ck_assert_ptr_null(m->mtp);
    ck_assert_msg(dsv4_model_add_mtp(m, path_of("mtp.gguf"), &err) == DSV4_OK, "%s", err.text);
    holds(&m->mtp->e_proj, "mtp.0.e_proj.weight", 0);
    holds(&m->mtp->hc_head.fn, "mtp.0.hc_head_fn.weight", 0);
    holds(&m->mtp->layer.w2[1], "mtp.0.ffn_down_exps.weight", F * D);
    ck_assert_int_eq(m->mtp->layer.ratio, 0);
    ck_assert_float_eq(m->mtp->layer.swiglu_limit, 10);
    ck_assert_int_eq(dsv4_model_add_mtp(m, path_of("mtp.gguf"), &err), DSV4_E_INPUT);
    dsv4_model_close(m);
}
END_TEST

START_TEST(reads_mtp_block)
{
    float row[D];
    static const char eh[] = "blk.2.nextn.eh_proj.weight";
    write_file("model.gguf", &(edit){.layers = 2, .nextn = true});
    dsv4_model *m = open_ok("model.gguf");
    ck_assert_int_eq(m->config.num_hidden_layers, 2);
    ck_assert_ptr_nonnull(m->mtp);
    for (int64_t r = 0; r < D; r++) /* columns (e_proj | h_proj) */
        for (uint64_t c = 0; c < D; c++) {
            dsv4_tensor_row(&m->mtp->e_proj, r, row);
            ck_assert_float_eq(row[c], value_of(eh, (uint64_t)r * 2 * D + c));
            dsv4_tensor_row(&m->mtp->h_proj, r, row);
            ck_assert_float_eq(row[c], value_of(eh, (uint64_t)r * 2 * D + D + c));
        }
    holds(&m->mtp->norm, "blk.2.nextn.shared_head_norm.weight", 0);
    holds(&m->mtp->layer.wkv, "blk.2.attn_kv.weight", 0);
    holds(&m->mtp->hc_head.base, "output_hc_base.weight", 0);
    dsv4_model_close(m);
}
END_TEST

/* ---- damage ------------------------------------------------------------------------------- */

START_TEST(survives_truncation)
{
    write_file("cut.gguf", &(edit){.all_types = true});
    for (size_t n = image.n; n-- > 0;) {
        ck_assert_int_eq(truncate(path_of("cut.gguf"), (off_t)n), 0);
        open_fails("cut.gguf", "cut.gguf");
    }
}
END_TEST

START_TEST(survives_flips)
{
    static const uint8_t masks[] = {0x01, 0x80, 0xff};
    write_file("flip.gguf", &(edit){.all_types = true});
    FILE *f = fopen(path_of("flip.gguf"), "r+b");
    ck_assert_ptr_nonnull(f);
    for (size_t i = 0; i < image.n; i++)
        for (int k = 0; k < 3; k++) {
            dsv4_error err = {""};
            dsv4_model *m = NULL;
            ck_assert(fseek(f, (long)i, SEEK_SET) == 0 &&
                      fputc(image.bytes[i] ^ masks[k], f) != EOF && fflush(f) == 0);
            dsv4_status status = dsv4_model_open(path_of("flip.gguf"), &m, &err);
            if (status != DSV4_OK) /* a flipped count may ask for absurd memory: refused, no more */
                ck_assert_msg(status == DSV4_E_INPUT && err.text[0] != '\0', "byte %zu: %s", i,
                              err.text);
            dsv4_model_close(m);
            ck_assert(fseek(f, (long)i, SEEK_SET) == 0 && fputc(image.bytes[i], f) != EOF);
        }
    fclose(f);
}
END_TEST

START_TEST(survives_lack_of_memory)
{
    write_file("model.gguf", &(edit){.all_types = true});
    int refused = 0;
    for (long n = 1;; n++) {
        dsv4_error err = {""};
        dsv4_model *m = NULL;
        dsv4_alloc_fail_at(n);
        dsv4_status status = dsv4_model_open(path_of("model.gguf"), &m, &err);
        dsv4_alloc_fail_at(0);
        dsv4_model_close(m);
        if (status == DSV4_OK)
            break;
        ck_assert_int_eq(status, DSV4_E_MACHINE);
        refused++;
    }
    ck_assert_int_gt(refused, 50);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gguf");
    TCase *t = tcase_create("gguf");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 120);
    tcase_add_test(t, reads_every_tensor);
    tcase_add_test(t, lists_keys);
    tcase_add_test(t, tolerates_writers);
    tcase_add_test(t, names_missing_keys);
    tcase_add_test(t, names_wrong_keys);
    tcase_add_test(t, refuses_bad_headers);
    tcase_add_test(t, refuses_bad_tensors);
    tcase_add_test(t, refuses_twin_keys);
    tcase_add_test(t, finds_all_shards);
    tcase_add_test(t, refuses_wrong_shards);
    tcase_add_test(t, reads_mtp_file);
    tcase_add_test(t, reads_mtp_block);
    tcase_add_test(t, survives_truncation);
    tcase_add_test(t, survives_flips);
    tcase_add_test(t, survives_lack_of_memory);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? 0 : 1;
}
