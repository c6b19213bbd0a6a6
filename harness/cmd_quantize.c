/* cmd_quantize.c - dsv4check quantize IN OUT --recipe R: a published recipe, class by class. */
#include <stdio.h>
#include <string.h>

#include "make_model.h"

static void print_help(void)
{
    fputs("usage: dsv4check quantize IN OUT --recipe R [options]\n\nRecipes:\n", stdout);
    for (size_t i = 0; recipe_at(i) != NULL; i++)
        printf("  %-8s %s\n", recipe_at(i)->name, recipe_at(i)->help);
    fputs("\n  --imatrix FILE         importance of the input columns (llama.cpp's .dat)\n"
          "  --importance ones|energy  without --imatrix, for the formats that need one: all "
          "columns\n"
          "                         alike (default), or each column's summed squares, as the\n"
          "                         published 2-bit files without an importance matrix have it\n"
          "  --mtp FILE             MTP layer of IN held in a second file\n"
          "  --mtp-out FILE         write the MTP layer to a GGUF file of its own\n"
          "  --shards N             number of files OUT is split into\n"
          "  --threads N            default: all\n"
          "  --quiet, --no-progress\n",
          stdout);
}

static dsv4_status choose(void *ctx, const weight *w, encoding *out, dsv4_error *err)
{
    (void)err;
    *out = recipe_encoding(ctx, w);
    return DSV4_OK;
}

int cmd_quantize(int argc, char **argv)
{
    static const char *const allowed[] = {"recipe",  "imatrix", "importance", "mtp",
                                          "mtp-out", "shards",  "threads",    NULL};
    make_options o;
    dsv4_error err;
    encoder enc = {0};
    imatrix *importance = NULL;
    const recipe *r = NULL;
    dsv4_status status = make_options_parse(argc, argv, allowed, 2, &o, &err);
    if (status == DSV4_OK && o.help) {
        print_help();
        return 0;
    }
    if (status == DSV4_OK) {
        r = o.recipe != NULL ? recipe_find(o.recipe) : NULL;
        if (r == NULL)
            status = dsv4_fail(&err, DSV4_E_INPUT, "--recipe: %s '%s' (--help lists the recipes)",
                               o.recipe != NULL ? "unknown recipe" : "expected a recipe, found",
                               o.recipe != NULL ? o.recipe : "nothing");
    }
    if (status == DSV4_OK && o.importance != NULL) {
        enc.energy = strcmp(o.importance, "energy") == 0;
        if (!enc.energy && strcmp(o.importance, "ones") != 0)
            status = dsv4_fail(&err, DSV4_E_INPUT,
                               "--importance: expected ones or energy, found '%s'", o.importance);
    }
    if (status == DSV4_OK && o.imatrix != NULL)
        status = imatrix_open(o.imatrix, &importance, &err);
    if (status == DSV4_OK) {
        chooser c = {(void *)(uintptr_t)r, choose};
        enc.importance = importance;
        if (o.shards == 0)
            o.shards = r->shards;
        status = make_model(&o, r->to, r->file_type,
                            r->mtp != NULL ? recipe_find(r->mtp)->file_type : r->file_type, &c,
                            &enc, &err);
    }
    imatrix_free(importance);
    return make_exit(&o, status, &err);
}
