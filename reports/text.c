/* text.c - results for a person in a terminal: a table by tap, then the verdict, and on failure the
 * place to look first. At most 100 columns, except for command lines, which want copying. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reports/text_private.h"

#define COLUMNS 98 /* and up to two blanks before */
#define MAX_MISSING 20
#define MAX_CHANGES 10

typedef struct {
    FILE *out;
    bool color;
} screen;

/* ---- characters ----------------------------------------------------------------------------- */

/* Characters shown of a text: control characters (which could drive the terminal) and what is not
 * UTF-8 are shown as one '?'. */
static bool shown_as_is(uint32_t code)
{
    return code >= 0x20 && code != 0x7f && (code < 0x80 || code > 0x9f) && code != 0xfffd;
}

static size_t length_of(const char *s)
{
    uint32_t code;
    size_t length = 0;
    for (size_t n; s && (n = report_utf8(s, &code)) > 0; s += n)
        length++;
    return length;
}

/* The first `count` characters; returns how many were there. */
static size_t put_characters(FILE *out, const char *s, size_t count)
{
    uint32_t code;
    size_t done = 0;
    for (size_t n; s && done < count && (n = report_utf8(s, &code)) > 0; s += n, done++) {
        if (shown_as_is(code))
            fwrite(s, 1, n, out);
        else
            fputc('?', out);
    }
    return done;
}

/* A cell of `width` columns: padded, or cut with "..". */
static void put_cell(FILE *out, const char *s, size_t width)
{
    size_t length = length_of(s);
    size_t done = put_characters(out, s, length > width ? width - 2 : length);
    if (length > width)
        done += fprintf(out, "..") > 0 ? 2 : 0;
    for (; done < width; done++)
        fputc(' ', out);
}

/* A paragraph: lines break at blanks; lines after the first start with `indent` blanks. */
static void put_wrapped(FILE *out, const char *s, int indent)
{
    size_t column = 0;
    while (s && *s) {
        while (*s == ' ')
            s++;
        size_t bytes = strcspn(s, " "), length = 0;
        if (bytes == 0)
            break;
        char *word = dsv4_alloc(bytes + 1, 1, "text", NULL);
        if (word)
            memcpy(word, s, bytes);
        length = word ? length_of(word) : 0;
        if (column > 0 && column + 1 + length > COLUMNS) {
            fprintf(out, "\n%*s", indent, "");
            column = (size_t)indent;
        } else if (column > 0) {
            fputc(' ', out);
            column++;
        }
        column += put_characters(out, word, length);
        free(word);
        s += bytes;
    }
    fputc('\n', out);
}

/* put_wrapped of a formatted text. */
static void put_paragraph(FILE *out, int indent, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void put_paragraph(FILE *out, int indent, const char *fmt, ...)
{
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, again);
    va_end(again);
    char *text = n < 0 ? NULL : dsv4_alloc((size_t)n + 1, 1, "text", NULL);
    if (text) {
        vsnprintf(text, (size_t)n + 1, fmt, args);
        put_wrapped(out, text, indent);
    } else {
        fputs("(no memory for a paragraph)\n", out);
    }
    va_end(args);
    free(text);
}

static const char *color_on(const screen *s, verdict v)
{
    if (!s->color)
        return "";
    return v == VERDICT_PASS ? "\033[32m" : v == VERDICT_FAIL ? "\033[31m" : "\033[33m";
}

static const char *color_off(const screen *s)
{
    return s->color ? "\033[0m" : "";
}

/* ---- parts ---------------------------------------------------------------------------------- */

static const char *or_none(const char *s)
{
    return s && s[0] ? s : "-";
}

static void put_header(const screen *s, const results *r)
{
    put_paragraph(s->out, 2, "dsv4check %s: model %s, engine %s, numerics %s%s%s%s%s",
                  or_none(r->command), or_none(r->model), or_none(r->engine), or_none(r->numerics),
                  r->mode && r->mode[0] ? ", mode " : "", r->mode ? r->mode : "",
                  r->error ? ", error measured: " : "", r->error ? r->error : "");
    for (size_t i = 0; i < r->n_vectors; i++)
        put_paragraph(s->out, 2, "vectors %s, made by %s", or_none(r->vectors[i].file),
                      or_none(r->vectors[i].producer));
}

/* The items of one tap, summed up. */
typedef struct {
    size_t compared, skipped;
    const result *worst; /* by verdict, then by share of the budget; NULL = all skipped */
    int64_t ties, flips;
} tap_summary;

/* Share of its budget that an item used, so that a larger one is worse; not-a-number is worst. */
static bool uses_more(const result *a, const result *b)
{
    double x = a->rel_l2 * b->budget, y = b->rel_l2 * a->budget;
    if (a->verdict != b->verdict)
        return a->verdict > b->verdict;
    return x > y || (x != x && y == y);
}

static tap_summary summarize(const results *r, dsv4_tap_id tap)
{
    tap_summary sum = {0};
    for (size_t i = 0; i < r->count; i++) {
        const result *item = &r->items[i];
        if (item->tap != tap)
            continue;
        if (item->verdict == VERDICT_SKIPPED) {
            sum.skipped++;
            continue;
        }
        sum.compared++;
        sum.ties += item->ties;
        sum.flips += item->flips;
        if (!sum.worst || uses_more(item, sum.worst))
            sum.worst = item;
    }
    return sum;
}

static void put_row(const screen *s, dsv4_tap_id tap, const tap_summary *sum)
{
    char place[256];
    const result *w = sum->worst;
    put_cell(s->out, dsv4_tap_name(tap), 18);
    if (!w) {
        fprintf(s->out, "%-11s %8s %10s %9s  %s%-8s%s  %zu skipped\n", "", "-", "-", "-",
                color_on(s, VERDICT_SKIPPED), "skipped", color_off(s), sum->skipped);
        return;
    }
    if (w->layer >= 0)
        snprintf(place, sizeof place, "%.200s layer %d", w->case_name, w->layer);
    else
        snprintf(place, sizeof place, "%.200s", w->case_name);
    fprintf(s->out, "%-11.11s %8zu %10.2e %9.1e  %s%-8s%s  ", or_none(w->block), sum->compared,
            w->rel_l2, w->budget, color_on(s, w->verdict), verdict_name(w->verdict), color_off(s));
    put_cell(s->out, place, length_of(place) > 28 ? 28 : length_of(place));
    fputc('\n', s->out);
}

/* Selections that other weights decide otherwise: part of what the format costs. */
static void put_changed(const screen *s, const results *r)
{
    int64_t changed = 0, rows = 0;
    for (size_t i = 0; i < r->count; i++)
        if (dsv4_tap_is_int(r->items[i].tap)) {
            changed += r->items[i].changed;
            rows += r->items[i].rows;
        }
    if (changed)
        put_paragraph(s->out, 2, "other weights, other choices: %lld of %lld selections changed",
                      (long long)changed, (long long)rows);
}

/* What depends on a tie or a flip is judged by budgets of its own; say how far it went. */
static void put_after(const screen *s, const results *r)
{
    const result *worst = NULL;
    int64_t rows = 0;
    for (size_t i = 0; i < r->count; i++) {
        const result *x = &r->items[i];
        rows += x->rows_after;
        if (x->rows_after > 0 && (!worst || x->rel_l2_after > worst->rel_l2_after))
            worst = x;
    }
    if (worst)
        put_paragraph(s->out, 2,
                      "after a tie or flip: %lld rows, judged by their own budgets; worst relative "
                      "L2 %.2e at %s, %s",
                      (long long)rows, worst->rel_l2_after, dsv4_tap_name(worst->tap),
                      worst->case_name);
}
static void put_table(const screen *s, const results *r)
{
    int64_t ties = 0, flips = 0;
    if (r->count == 0)
        return;
    fprintf(s->out, "\n%-18s%-11s %8s %10s %9s  %-8s  %s\n", "tap", "block", "compared",
            "worst rel", "budget", "verdict", "worst at");
    for (int tap = 0; tap < DSV4_TAP_COUNT; tap++) {
        tap_summary sum = summarize(r, (dsv4_tap_id)tap);
        if (sum.compared + sum.skipped == 0)
            continue;
        put_row(s, (dsv4_tap_id)tap, &sum);
        ties += sum.ties;
        flips += sum.flips;
    }
    fputc('\n', s->out);
    if (ties || flips)
        put_paragraph(s->out, 2,
                      "inside the noise: %lld ties (selections that differ at the cut), %lld flips "
                      "(roundings to the other neighbour); not failures",
                      (long long)ties, (long long)flips);
    put_changed(s, r);
    put_after(s, r);
}

static void put_remarks(const screen *s, const results *r)
{
    if (r->n_missing)
        fprintf(s->out, "missing on the engine's side: %zu\n", r->n_missing);
    for (size_t i = 0; i < r->n_missing && i < MAX_MISSING; i++)
        put_paragraph(s->out, 4, "- %s", r->missing[i]);
    if (r->n_missing > MAX_MISSING)
        fprintf(s->out, "- and %zu more\n", r->n_missing - MAX_MISSING);
    for (size_t i = 0; i < r->n_notes; i++)
        put_paragraph(s->out, 6, "note: %s", r->notes[i]);
}

/* Who answers for which failures. */
static void put_waivers(const screen *s, const results *r)
{
    for (size_t i = 0; i < r->n_waivers; i++) {
        const waiver *w = &r->waivers[i];
        if (!w->expired && w->excused > 0)
            put_paragraph(s->out, 2, "waived until %s: %zu by '%s' (%s): %s, %s", w->expires,
                          w->excused, w->pattern, w->owner, w->reason, w->link);
    }
}

/* What changed since the baseline; of what got worse the first few. */
static void put_baseline(const screen *s, const baseline *b)
{
    if (!b)
        return;
    put_paragraph(s->out, 2,
                  "against %s%s%s: %zu worse, %zu better, %zu new, %zu gone, %zu within noise",
                  b->file, b->date ? " of " : "", b->date ? b->date : "", b->counts[CHANGE_WORSE],
                  b->counts[CHANGE_BETTER], b->counts[CHANGE_NEW], b->counts[CHANGE_GONE], b->same);
    for (size_t i = 0; i < b->n && i < MAX_CHANGES; i++) {
        const baseline_change *c = &b->items[i];
        if (c->now && c->before_verdict[0])
            put_paragraph(s->out, 4, "- %s: %s, %.2e to %.2e, %s to %s (beyond %s)",
                          change_name(c->kind), c->id, c->before_rel_l2, c->now->rel_l2,
                          c->before_verdict, verdict_name(c->now->verdict), c->why);
        else
            put_paragraph(s->out, 4, "- %s: %s", change_name(c->kind), c->id);
    }
    if (b->n > MAX_CHANGES)
        fprintf(s->out, "- and %zu more\n", b->n - MAX_CHANGES);
}

bool report_remarks(FILE *out, const results *r)
{
    screen s = {out, false};
    put_waivers(&s, r);
    put_baseline(&s, r->baseline);
    for (size_t i = 0; i < r->n_problems; i++)
        put_paragraph(out, 2, "waiver: %s", r->problems[i]);
    return fflush(out) == 0 && !ferror(out);
}

static void put_verdict(const screen *s, const results *r)
{
    size_t skipped = results_count(r, VERDICT_SKIPPED), compared = r->count - skipped;
    size_t failed = results_count(r, VERDICT_FAIL), marginal = results_count(r, VERDICT_MARGINAL);
    static const char *const words[] = {"PASS", "MARGINAL", "PASS", "FAIL", "NOTHING COMPARED"};
    fprintf(s->out, "%s%s%s: ", color_on(s, r->verdict), words[r->verdict], color_off(s));
    fprintf(s->out, "%zu comparison%s in %zu case%s", compared, compared == 1 ? "" : "s", r->cases,
            r->cases == 1 ? "" : "s");
    if (failed)
        fprintf(s->out, ", %zu failed", failed);
    if (marginal)
        fprintf(s->out, ", %zu marginal", marginal);
    if (results_count(r, VERDICT_WAIVED))
        fprintf(s->out, ", %zu waived", results_count(r, VERDICT_WAIVED));
    if (skipped)
        fprintf(s->out, ", %zu skipped", skipped);
    fprintf(s->out, ", %.1f s\n", r->seconds);
}

static void put_causes(const screen *s, const results *r)
{
    for (size_t i = 0; i < r->n_causes; i++) {
        const likely_cause *c = &r->causes[i];
        fputs("  ", s->out);
        put_paragraph(s->out, 4, "%s: %s (%s, %s)", i == 0 ? "likely cause" : "or", c->sentence,
                      c->id, c->reference);
        if (c->evidence[0]) {
            fputs("    ", s->out);
            put_paragraph(s->out, 4, "evidence: %s", c->evidence);
        }
    }
}

/* Where taps were left out, the fault lies between two of them. */
static void put_between(const screen *s, const results *r)
{
    const result *right = r->last_right;
    char from[64] = "the tokens";
    if (r->unseen == 0)
        return;
    if (right && right->layer >= 0)
        snprintf(from, sizeof from, "%s of layer %d", dsv4_tap_name(right->tap), right->layer);
    else if (right)
        snprintf(from, sizeof from, "%s", dsv4_tap_name(right->tap));
    fputs("  ", s->out);
    put_paragraph(s->out, 2,
                  "the last that is right is %s; %zu taps between were not compared, and the fault "
                  "may lie in each of them, not only in the block named above",
                  from, r->unseen);
}

static void put_divergence(const screen *s, const results *r)
{
    const result *item = r->first_divergence;
    char layer[32] = "", numbers[192];
    if (item->layer >= 0)
        snprintf(layer, sizeof layer, "layer %d ", item->layer);
    put_paragraph(s->out, 2,
                  "first divergence: %s%s, block %s, case %s, %s %lld index %lld:", layer,
                  result_name(item), or_none(item->block), item->case_name,
                  dsv4_tap_is_row(item->tap) ? "row" : "position", (long long)item->max_position,
                  (long long)item->max_index);
    fputs("  ", s->out);
    put_paragraph(s->out, 2, "expected %.7g, got %.7g, %s (why: %s)", item->expected, item->actual,
                  report_numbers(numbers, sizeof numbers, item), or_none(item->reason));
    if (item->note) {
        fputs("  ", s->out);
        put_paragraph(s->out, 2, "%s", item->note);
    }
    put_between(s, r);
    put_causes(s, r);
    if (item->replay) {
        fputs("replay: ", s->out);
        put_characters(s->out, item->replay, (size_t)-1);
        fputc('\n', s->out);
    }
}

bool report_text(FILE *out, const results *r, bool quiet)
{
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    screen s = {out, isatty(fileno(out)) && !(no_color && no_color[0]) &&
                         !(term && strcmp(term, "dumb") == 0)};
    if (!quiet) {
        put_header(&s, r);
        put_table(&s, r);
        put_remarks(&s, r);
    }
    report_remarks(out, r);
    put_verdict(&s, r);
    if (r->first_divergence)
        put_divergence(&s, r);
    return fflush(out) == 0 && !ferror(out);
}
