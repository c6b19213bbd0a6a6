/* test_found.c - files that once broke a reader, kept as they were found. Each must be read or
 * refused with one line; none may crash. found/config: config.json texts; found/models: weight
 * files, opened as they are. */
#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "reference/dsv4.h"

static char *read_all(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "%s", path);
    char *text = calloc(1, 1 << 20);
    ck_assert_ptr_nonnull(text);
    *bytes = fread(text, 1, (1 << 20) - 1, f);
    fclose(f);
    return text;
}

static void one_line(const dsv4_error *err, const char *path)
{
    ck_assert_msg(err->text[0] != '\0' && strchr(err->text, '\n') == NULL, "%s: message '%s'", path,
                  err->text);
}

static int each(const char *folder, void (*what)(const char *path))
{
    char path[1024];
    int n = 0;
    DIR *d = opendir(folder);
    ck_assert_msg(d != NULL, "%s", folder);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        what(path);
        n++;
    }
    closedir(d);
    return n;
}

static void open_config(const char *path)
{
    dsv4_error err = {""};
    dsv4_config c;
    size_t n;
    char *text = read_all(path, &n);
    dsv4_status status = dsv4_config_parse(text, n, path, &c, &err);
    if (status == DSV4_OK)
        dsv4_config_free(&c);
    else
        one_line(&err, path);
    free(text);
}

static void open_model(const char *path)
{
    dsv4_error err = {""};
    dsv4_model *m = NULL;
    if (dsv4_model_open(path, &m, &err) == DSV4_OK)
        dsv4_model_close(m);
    else
        one_line(&err, path);
}

START_TEST(configs_once_found_are_read_or_refused)
{
    ck_assert_int_gt(each(DSV4_FOUND "/config", open_config), 0);
}
END_TEST

START_TEST(models_once_found_are_read_or_refused)
{
    ck_assert_int_gt(each(DSV4_FOUND "/models", open_model), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("found");
    TCase *t = tcase_create("files");
    tcase_add_test(t, configs_once_found_are_read_or_refused);
    tcase_add_test(t, models_once_found_are_read_or_refused);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
