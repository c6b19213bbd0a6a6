/* cmd_quants.c - weight formats: decode, encode and dot product against golden blocks. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness/quants.h"

static const char help[] =
    "usage: dsv4check quants [--format GLOB] [--vectors F.h5] [options]\n"
    "\n"
    "Checks decode, encode and dot product of every weight format against golden blocks (schema\n"
    "dsv4-quants-1) and, where the file has none, against the format's definition. Names the\n"
    "likely cause of a difference. Exit 0 passed, 1 a format is wrong, 2 bad input or nothing\n"
    "compared.\n"
    "\n"
    "  --format GLOB   only these formats, e.g. Q4_K or 'IQ*'\n"
    "  --vectors F     golden blocks (default: " DSV4_VECTORS "/ggml-quants.h5)\n"
    "  --budgets FILE  other limits (lines @quants/...)\n"
    "  --json FILE  --junit FILE  --quiet\n";

static const char *const allowed[] = {"format", "vectors", "budgets",     "json",
                                      "junit",  "quiet",   "no-progress", NULL};

/* Writes a report through a temporary file: it is whole or absent. */
static dsv4_status write_report(const char *path, bool (*writer)(FILE *, const quants_report *),
                                const quants_report *r, dsv4_error *err)
{
    size_t n = strlen(path) + sizeof ".tmp";
    char *temporary = dsv4_alloc(n, 1, "path", err);
    if (temporary == NULL)
        return DSV4_E_MACHINE;
    /* A link, pipe or device is written to, not replaced. */
    struct stat target;
    bool direct = lstat(path, &target) == 0 && !S_ISREG(target.st_mode);
    snprintf(temporary, n, "%s%s", path, direct ? "" : ".tmp");
    errno = 0;
    FILE *f = fopen(temporary, "wb");
    bool ok = f != NULL && writer(f, r);
    if (f != NULL && fclose(f) != 0)
        ok = false;
    ok = ok && (direct || rename(temporary, path) == 0);
    dsv4_status status = ok ? DSV4_OK
                            : dsv4_fail(err, DSV4_E_MACHINE, "%s: cannot write the report: %s",
                                        path, errno ? strerror(errno) : "the writer failed");
    if (!ok && !direct && f != NULL)
        unlink(temporary);
    free(temporary);
    return status;
}

int cmd_quants(int argc, char **argv)
{
    double started = now_seconds();
    dsv4_error err = {""};
    options o;
    quants_report r = {0};
    budget_table budgets = {0};
    int code = 0;
    dsv4_status status = options_parse(argc, argv, allowed, &o, &err);
    if (status != DSV4_OK)
        return report_failure(status, &err);
    if (o.help) {
        fputs(help, stdout);
        goto done;
    }
    const char *path = o.n_vectors > 0 ? o.vectors[0] : DSV4_VECTORS "/ggml-quants.h5";
    if (o.n_rest > 0)
        status = dsv4_fail(&err, DSV4_E_INPUT, "quants takes no operand, found '%s' (see --help)",
                           o.rest[0]);
    else if (o.n_vectors > 1)
        status =
            dsv4_fail(&err, DSV4_E_INPUT, "quants takes one --vectors, found %zu", o.n_vectors);
    if (status == DSV4_OK)
        status = budgets_load(o.budgets, &budgets, &err);
    if (status == DSV4_OK)
        status = quants_run(path, o.format, dsv4_format_of, &budgets, &r, &err);
    if (status == DSV4_OK)
        status = file_sha256(path, r.sha256, &err);
    if (status != DSV4_OK)
        goto done;
    r.argv = command_line(argc, argv);
    r.seconds = now_seconds() - started;
    if (!quants_text(stdout, &r, o.quiet))
        status = dsv4_fail(&err, DSV4_E_MACHINE, "cannot write the report to standard output");
    if (status == DSV4_OK && o.json != NULL)
        status = write_report(o.json, quants_json, &r, &err);
    if (status == DSV4_OK && o.junit != NULL)
        status = write_report(o.junit, quants_junit, &r, &err);
    code = quants_exit_code(&r);
    if (status == DSV4_OK && r.comparisons == 0)
        fprintf(stderr, "dsv4check: nothing was compared: %s\n",
                r.count > 0 ? r.items[0].reason : "no format");
done:
    if (status != DSV4_OK)
        code = report_failure(status, &err);
    quants_report_free(&r);
    budgets_free(&budgets);
    options_free(&o);
    return code;
}
