/* test_affine.c - the known bad MLX converter: a plain min/max affine quantiser. Its file loads,
 * and is reported as failing with the first bad layer named; MLX's own scheme passes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness/recipes.h"
#include "harness/runner.h"
#include "reference/formats/formats.h"

static char folder[64], model_path[96];

static int make_model(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/dsv4-affine-XXXXXX");
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(model_path, sizeof model_path, "%s/mlx4", folder);
    char *argv[] = {"quantize", DSV4_VECTORS "/stress", model_path, "--recipe", "mlx4", "--quiet"};
    return cmd_quantize(6, argv);
}

static int remove_model(void **state)
{
    (void)state;
    DIR *d = opendir(model_path);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", model_path, e->d_name);
        if (e->d_name[0] != '.')
            unlink(path);
    }
    if (d != NULL)
        closedir(d);
    rmdir(model_path);
    return rmdir(folder);
}

static verdict judge_model(dsv4_model *m, results *r)
{
    dsv4_error err;
    budget_table budgets;
    assert_int_equal(budgets_load(NULL, &budgets, &err), DSV4_OK);
    results_init(r);
    assert_int_equal(check_affine(m, &budgets, r, &err), DSV4_OK);
    results_finish(r);
    budgets_free(&budgets);
    return r->verdict;
}

static void test_own_scheme_passes(void **state)
{
    (void)state;
    dsv4_error err;
    dsv4_model *m;
    results r;
    assert_int_equal(dsv4_model_open(model_path, &m, &err), DSV4_OK);
    assert_int_equal(judge_model(m, &r), VERDICT_PASS);
    assert_int_equal(r.count, m->config.num_hidden_layers); /* something was judged */
    results_free(&r);
    dsv4_model_close(m);
}

/* What a min/max quantiser writes for a tensor: scale (max - min)/15, bias min, of the values that
 * the good file decodes to. The views are copied; the file stays as it is. */
static void spoil(dsv4_tensor *t)
{
    const dsv4_format *f = dsv4_format_of(t->scale_type);
    int64_t groups = t->cols / t->scale_cols;
    size_t bytes = (size_t)t->rows * t->scale_row_bytes;
    uint8_t *bias = malloc(bytes);
    float *row = malloc((size_t)t->cols * sizeof *row), *low = malloc((size_t)groups * sizeof *low);
    assert_true(bias != NULL && row != NULL && low != NULL);
    for (int64_t i = 0; i < t->rows; i++) {
        dsv4_tensor_row(t, i, row);
        for (int64_t g = 0; g < groups; g++) {
            low[g] = row[g * t->scale_cols];
            for (int k = 1; k < t->scale_cols; k++)
                low[g] = fminf(low[g], row[g * t->scale_cols + k] -
                                           0.37f * fabsf(row[g * t->scale_cols + k]));
        }
        const dsv4_encoded out = {.data = bias + (size_t)i * t->scale_row_bytes};
        assert_true(f->encode(low, 1, groups, NULL, &out));
    }
    t->bias = bias;
    t->row0 = 0;
    free(row);
    free(low);
}

static void test_min_max_scheme_fails_and_names_the_layer(void **state)
{
    (void)state;
    dsv4_error err;
    dsv4_model *m;
    results r;
    assert_int_equal(dsv4_model_open(model_path, &m, &err), DSV4_OK);
    dsv4_layer *l = &m->layers[2];               /* layers 0 and 1 stay good */
    dsv4_tensor *spoilt[] = {&l->wq_a, &l->wkv}; /* those whose rows are whole groups */
    const uint8_t *made[2];
    for (int i = 0; i < 2; i++) {
        assert_int_equal(spoilt[i]->type, DSV4_MLX4);
        spoil(spoilt[i]);
        made[i] = spoilt[i]->bias;
    }
    /* All but the experts are spoilt, which are most of the layer: judged alone. */
    int64_t experts = m->config.n_routed_experts;
    m->config.n_routed_experts = 0;
    assert_int_equal(judge_model(m, &r), VERDICT_FAIL);
    m->config.n_routed_experts = (int)experts;
    assert_non_null(r.first_divergence);
    assert_int_equal(r.first_divergence->layer, 2);
    assert_string_equal(r.first_divergence->block, "quant");
    assert_non_null(strstr(r.first_divergence->note, "min/max"));
    assert_non_null(strstr(r.first_divergence->note, "wq_a"));
    results_free(&r);
    for (int i = 0; i < 2; i++)
        free((void *)(uintptr_t)made[i]);
    dsv4_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_own_scheme_passes),
        cmocka_unit_test(test_min_max_scheme_fails_and_names_the_layer),
    };
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
