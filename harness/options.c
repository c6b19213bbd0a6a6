/* options.c - the command line, one vocabulary for all commands. */
#include <fnmatch.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

/* NUMBER: an integer from 0 up; REAL: a number from 0 up. -1 = not given. */
typedef enum { FLAG, TEXT, COUNT, LIST, NUMBER, REAL } kind;

/* Every option there is; a command names those it takes. */
static const struct {
    const char *name;
    kind kind;
    size_t at;
} known[] = {
    {"model", TEXT, offsetof(options, model)},
    {"mtp", TEXT, offsetof(options, mtp)},
    {"engine", TEXT, offsetof(options, engine)},
    {"weights-from", TEXT, offsetof(options, weights_from)},
    {"numerics", TEXT, offsetof(options, numerics)},
    {"mode", TEXT, offsetof(options, mode)},
    {"budgets", TEXT, offsetof(options, budgets)},
    {"case", TEXT, offsetof(options, case_glob)},
    {"taps", TEXT, offsetof(options, tap_glob)},
    {"json", TEXT, offsetof(options, json)},
    {"junit", TEXT, offsetof(options, junit)},
    {"html", TEXT, offsetof(options, html)},
    {"markdown", TEXT, offsetof(options, markdown)},
    {"waivers", TEXT, offsetof(options, waivers)},
    {"baseline", TEXT, offsetof(options, baseline)},
    {"format", TEXT, offsetof(options, format)},
    {"out", TEXT, offsetof(options, out)},
    {"tokens", TEXT, offsetof(options, tokens)},
    {"positions", TEXT, offsetof(options, positions)},
    {"captured", TEXT, offsetof(options, captured)},
    {"bundle", TEXT, offsetof(options, bundle)},
    {"model-dir", TEXT, offsetof(options, model_dir)},
    {"sha256", TEXT, offsetof(options, sha256)},
    {"any-count", FLAG, offsetof(options, any_count)},
    {"url", TEXT, offsetof(options, url)},
    {"prompts", TEXT, offsetof(options, prompts)},
    {"key-env", TEXT, offsetof(options, key_env)},
    {"extra", TEXT, offsetof(options, extra)},
    {"top", NUMBER, offsetof(options, top)},
    {"max-tokens", NUMBER, offsetof(options, max_tokens)},
    {"retries", NUMBER, offsetof(options, retries)},
    {"timeout", NUMBER, offsetof(options, timeout)},
    {"backoff", REAL, offsetof(options, backoff)},
    {"rate", REAL, offsetof(options, rate)},
    {"stream", FLAG, offsetof(options, stream)},
    {"chat", FLAG, offsetof(options, chat)},
    {"completions", FLAG, offsetof(options, completions)},
    {"reference", TEXT, offsetof(options, reference)},
    {"reference-store", TEXT, offsetof(options, reference_store)},
    {"store", TEXT, offsetof(options, store)},
    {"profile", TEXT, offsetof(options, profile)},
    {"vectors", LIST, offsetof(options, vectors)},
    {"candidate", LIST, offsetof(options, candidates)},
    {"text", LIST, offsetof(options, texts)},
    {"context", TEXT, offsetof(options, context)},
    {"repeat", COUNT, 0},
    {"threads", COUNT, 0},
    {"chunk", COUNT, 0},
    {"prefill", COUNT, 0},
    {"decode", COUNT, 0},
    {"sequences", COUNT, 0},
    {"windows", COUNT, 0},
    {"window", COUNT, 0},
    {"stride", COUNT, 0},
    {"seed", COUNT, 0},
    {"detail", COUNT, 0},
    {"keep", COUNT, 0},
    {"full-every", COUNT, 0},
    {"ablate", FLAG, offsetof(options, ablate)},
    {"quiet", FLAG, offsetof(options, quiet)},
    {"no-progress", FLAG, offsetof(options, no_progress)},
    {"same-weights", FLAG, offsetof(options, same_weights)},
    {"no-share", FLAG, offsetof(options, no_share)},
    {"no-replay", FLAG, offsetof(options, no_replay)},
    {"check", FLAG, offsetof(options, check)},
    {"tensors", FLAG, offsetof(options, tensors)},
    {"keys", FLAG, offsetof(options, keys)},
    {"help", FLAG, offsetof(options, help)},
};
enum { N_KNOWN = sizeof known / sizeof *known };

static bool takes(const char *const *allowed, const char *name)
{
    if (strcmp(name, "help") == 0)
        return true;
    for (size_t i = 0; allowed[i] != NULL; i++)
        if (strcmp(allowed[i], name) == 0)
            return true;
    return false;
}

static dsv4_status set_count(options *o, const char *name, const char *text, dsv4_error *err)
{
    char *end;
    long long v = strtoll(text, &end, 10);
    bool zero = strcmp(name, "detail") == 0 || strcmp(name, "full-every") == 0;
    if (end == text || *end != '\0' || v < !zero || v > 1 << 30)
        return dsv4_fail(err, DSV4_E_INPUT, "--%s: expected a number from %d up, found '%s'", name,
                         !zero, text);
    if (strcmp(name, "threads") == 0)
        o->threads = v > 1024 ? 1024 : (int)v;
    else if (strcmp(name, "repeat") == 0)
        o->repeat = (int)v;
    else if (strcmp(name, "chunk") == 0)
        o->chunk = (int)v;
    else if (strcmp(name, "prefill") == 0)
        o->prefill = v;
    else if (strcmp(name, "decode") == 0)
        o->decode = v;
    else if (strcmp(name, "sequences") == 0)
        o->sequences = v > 1 << 20 ? 1 << 20 : (int)v;
    else if (strcmp(name, "windows") == 0)
        o->windows = v;
    else if (strcmp(name, "window") == 0)
        o->window = v;
    else if (strcmp(name, "stride") == 0)
        o->stride = v;
    else if (strcmp(name, "seed") == 0)
        o->seed = v;
    else if (strcmp(name, "keep") == 0)
        o->keep = v;
    else if (strcmp(name, "detail") == 0)
        o->detail = v;
    else
        o->full_every = v;
    return DSV4_OK;
}

/* A NUMBER or a REAL into its place. */
static dsv4_status set_number(void *at, kind k, const char *name, const char *text, dsv4_error *err)
{
    char *end;
    double real = strtod(text, &end);
    bool plain = end != text && *end == '\0' && strspn(text, "0123456789.e+-") == strlen(text);
    if (k == REAL && plain && real >= 0 && real <= 1e9) {
        memcpy(at, &real, sizeof real);
        return DSV4_OK;
    }
    long long v = strtoll(text, &end, 10);
    if (k == REAL || end == text || *end != '\0' || v < 0 || v > 1 << 30)
        return dsv4_fail(err, DSV4_E_INPUT, "--%s: expected a number from 0 up, found '%s'", name,
                         text);
    memcpy(at, &(int64_t){v}, sizeof(int64_t));
    return DSV4_OK;
}

static void add_to(option_list *l, const char *item)
{
    l->items[l->n++] = item;
}

dsv4_status options_parse(int argc, char **argv, const char *const *allowed, options *out,
                          dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    memset(out, 0, sizeof *out);
    out->threads = 2;
    out->top = out->max_tokens = out->retries = out->timeout = -1;
    out->backoff = out->rate = -1;
    out->detail = out->full_every = -1; /* not given */
    out->vectors = dsv4_alloc((size_t)argc + 1, sizeof *out->vectors, "options", err);
    out->rest = dsv4_alloc((size_t)argc + 1, sizeof *out->rest, "options", err);
    out->candidates.items = dsv4_alloc((size_t)argc + 1, sizeof(char *), "options", err);
    out->texts.items = dsv4_alloc((size_t)argc + 1, sizeof(char *), "options", err);
    if (out->vectors == NULL || out->rest == NULL || out->candidates.items == NULL ||
        out->texts.items == NULL)
        return DSV4_E_MACHINE;
    enum { FIRST_LONG = 256 }; /* beyond every character: ':' and '?' are getopt's own */
    struct option list[N_KNOWN + 1];
    memset(list, 0, sizeof list);
    for (int i = 0; i < N_KNOWN; i++)
        list[i] =
            (struct option){known[i].name, known[i].kind == FLAG ? no_argument : required_argument,
                            NULL, FIRST_LONG + i};
    opterr = 0;
    optind = 1;
    int index = 0, c;
    while (status == DSV4_OK && (c = getopt_long(argc, argv, ":", list, &index)) != -1) {
        int at = c - FIRST_LONG;
        if (c == ':')
            status = dsv4_fail(err, DSV4_E_INPUT, "%s needs a value", argv[optind - 1]);
        else if (c == '?' && optopt >= ' ' && optopt < FIRST_LONG)
            status =
                dsv4_fail(err, DSV4_E_INPUT, "dsv4check %s does not know -%c", argv[0], optopt);
        else if (at < 0 || !takes(allowed, known[at].name))
            status = dsv4_fail(err, DSV4_E_INPUT, "dsv4check %s does not know %s", argv[0],
                               argv[optind - 1]);
        else if (known[at].kind == FLAG)
            memcpy((char *)out + known[at].at, &(bool){true}, sizeof(bool));
        else if (known[at].kind == TEXT)
            memcpy((char *)out + known[at].at, &(const char *){optarg}, sizeof(const char *));
        else if (known[at].kind == NUMBER || known[at].kind == REAL)
            status =
                set_number((char *)out + known[at].at, known[at].kind, known[at].name, optarg, err);
        else if (known[at].kind == LIST && known[at].at == offsetof(options, vectors))
            out->vectors[out->n_vectors++] = optarg;
        else if (known[at].kind == LIST)
            add_to((option_list *)(void *)((char *)out + known[at].at), optarg);
        else
            status = set_count(out, known[at].name, optarg, err);
    }
    for (; optind < argc; optind++)
        out->rest[out->n_rest++] = argv[optind];
    if (status != DSV4_OK)
        options_free(out);
    return status;
}

void options_free(options *o)
{
    free(o->vectors);
    free(o->rest);
    free(o->candidates.items);
    free(o->texts.items);
    o->candidates = o->texts = (option_list){0};
    o->vectors = NULL;
    o->rest = NULL;
}

int report_failure(dsv4_status status, const dsv4_error *err)
{
    fprintf(stderr, "dsv4check: %s\n", err->text);
    return (int)status;
}

bool name_matches(const char *globs, const char *name)
{
    char one[256];
    for (const char *p = globs; p != NULL; p = strchr(p, '|')) {
        p += *p == '|';
        snprintf(one, sizeof one, "%.*s", (int)strcspn(p, "|"), p);
        if (fnmatch(one, name, 0) == 0)
            return true;
    }
    return globs == NULL;
}

char *text_copy(const char *s)
{
    char *copy = dsv4_alloc(strlen(s) + 1, 1, "text", NULL);
    if (copy != NULL)
        strcpy(copy, s);
    return copy;
}

char *command_line(int argc, char **argv)
{
    size_t size = strlen("dsv4check") + 1;
    for (int i = 0; i < argc; i++)
        size += 4 * strlen(argv[i]) + 3;
    char *line = dsv4_alloc(size, 1, "the command line", NULL);
    if (line == NULL)
        return NULL;
    char *p = line + sprintf(line, "dsv4check");
    for (int i = 0; i < argc; i++) {
        bool plain =
            argv[i][0] != '\0' &&
            strspn(argv[i], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                            "-_./:=,+@%") == strlen(argv[i]);
        *p++ = ' ';
        if (!plain)
            *p++ = '\'';
        for (const char *s = argv[i]; *s != '\0'; s++)
            if (*s == '\'')
                p += sprintf(p, "'\\''");
            else
                *p++ = *s;
        if (!plain)
            *p++ = '\'';
    }
    *p = '\0';
    return line;
}
