/* markdown.c - results for a pull request: verdict, where it first goes wrong, the worst, waivers,
 * what changed. Written part by part; what would lead beyond the limit of such a comment is left
 * out, and says so. */
#include <stdlib.h>
#include <string.h>

#include "reports/text_private.h"

enum { LIMIT = 64000, WORST = 25, CHANGES = 50, LINES = 50 };

/* What is left to write, in bytes (never fewer than characters). */
typedef struct {
    FILE *out;
    size_t left;
    bool full; /* something was left out */
} sheet;

/* Text that came from outside: shown as it is, never as markup. Backslashes before what Markdown
 * and HTML may read; control characters and what is not UTF-8 as U+FFFD. */
static void put_text(FILE *out, const char *s)
{
    uint32_t code;
    for (size_t n; s && (n = report_utf8(s, &code)) > 0; s += n) {
        if (code == '<')
            fputs("&lt;", out);
        else if (code == '>')
            fputs("&gt;", out);
        else if (code == '&')
            fputs("&amp;", out);
        else if (code == '@')
            fputs("@\xe2\x80\x8b", out); /* mentions nobody */
        else if (code < 0x20 || code == 0x7f || code == 0xfffd)
            fputs(code == '\n' || code == '\t' ? " " : "\xef\xbf\xbd", out);
        else if (code < 0x80 && strchr("\\`*_{}[]#|~!", (int)code))
            fprintf(out, "\\%c", (int)code);
        else
            fwrite(s, 1, n, out);
    }
}

/* A block of code that nothing in the text can end. */
static void put_code(FILE *out, const char *s)
{
    size_t longest = 2, run = 0;
    for (const char *p = s; *p; p++) {
        run = *p == '`' ? run + 1 : 0;
        longest = run > longest ? run : longest;
    }
    for (size_t i = 0; i <= longest; i++)
        fputc('`', out);
    fputc('\n', out);
    uint32_t code;
    for (size_t n; (n = report_utf8(s, &code)) > 0; s += n) {
        if ((code < 0x20 && code != '\t') || code == 0x7f || code == 0xfffd)
            fputs("\xef\xbf\xbd", out);
        else
            fwrite(s, 1, n, out);
    }
    fputc('\n', out);
    for (size_t i = 0; i <= longest; i++)
        fputc('`', out);
    fputs("\n", out);
}

/* ---- parts: each writes one piece, or one row ------------------------------------------------ */

/* A part is written to memory first, so that it goes out whole or not at all. */
typedef void (*part)(FILE *out, const void *what);

static bool put_part(sheet *s, part p, const void *what)
{
    char *text = NULL;
    size_t n = 0;
    FILE *memory = open_memstream(&text, &n);
    if (!memory)
        return false;
    p(memory, what);
    bool ok = fclose(memory) == 0;
    if (ok && n > s->left)
        s->full = true;
    else if (ok)
        s->left -= fwrite(text, 1, n, s->out);
    free(text);
    return ok;
}

static void put_literal(FILE *out, const void *what)
{
    fputs(what, out);
}

static void put_head(FILE *out, const void *what)
{
    const results *r = what;
    static const char *const words[VERDICT_COUNT] = {"PASS", "MARGINAL", "PASS", "FAIL",
                                                     "NOTHING COMPARED"};
    static const char *const signs[VERDICT_COUNT] = {
        ":white_check_mark:", ":warning:", ":white_check_mark:", ":x:", ":grey_question:"};
    size_t skipped = results_count(r, VERDICT_SKIPPED);
    fprintf(out, "## %s dsv4check ", signs[r->verdict]);
    put_text(out, r->command);
    fprintf(out, ": %s\n\n%zu comparisons in %zu case%s", words[r->verdict], r->count - skipped,
            r->cases, r->cases == 1 ? "" : "s");
    static const verdict told[] = {VERDICT_FAIL, VERDICT_MARGINAL, VERDICT_WAIVED, VERDICT_SKIPPED};
    static const char *const names[] = {"failed", "marginal", "waived", "skipped"};
    for (size_t i = 0; i < sizeof told / sizeof *told; i++)
        if (results_count(r, told[i]))
            fprintf(out, ", %zu %s", results_count(r, told[i]), names[i]);
    fprintf(out, ", %.1f s. ", r->seconds);
    const char *const facts[][2] = {{"Model", r->model},
                                    {"engine", r->engine},
                                    {"numerics", r->numerics},
                                    {"mode", r->mode},
                                    {"error measured", r->error}};
    bool first = true;
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        if (facts[i][1] && facts[i][1][0]) {
            fprintf(out, "%s%s ", first ? "" : ", ", facts[i][0]);
            put_text(out, facts[i][1]);
            first = false;
        }
    fputs(first ? "\n" : ".\n", out);
    for (size_t i = 0; i < r->n_problems && i < LINES; i++) {
        fputs("\n> **Waivers:** ", out);
        put_text(out, r->problems[i]);
        fputc('\n', out);
    }
}

static void put_divergence(FILE *out, const void *what)
{
    const results *r = what;
    const result *d = r->first_divergence;
    char tap[REPORT_TAP_MAX], numbers[192];
    fputs("\n### First divergence\n\n**", out);
    put_text(out, report_tap(tap, d));
    fputs("**, block **", out);
    put_text(out, d->block ? d->block : "-");
    fputs("**, case ", out);
    put_text(out, d->case_name);
    fprintf(out, ", %s %lld, index %lld: expected %.7g, got %.7g; %s (why: ",
            !d->name && dsv4_tap_is_row(d->tap) ? "row" : "position", (long long)d->max_position,
            (long long)d->max_index, d->expected, d->actual,
            report_numbers(numbers, sizeof numbers, d));
    put_text(out, d->reason ? d->reason : "-");
    fputs(").\n", out);
    if (d->note) {
        fputs("\n", out);
        put_text(out, d->note);
        fputs("\n", out);
    }
    if (r->unseen && r->last_right) {
        fputs("\nThe last that is right is ", out);
        put_text(out, report_tap(tap, r->last_right));
        fprintf(out,
                "; %zu taps between were not compared, and the fault may lie in each of them, not "
                "only in the block named above.\n",
                r->unseen);
    }
    for (size_t i = 0; i < r->n_causes; i++) {
        fputs(i ? "\nOr: " : "\nLikely cause: ", out);
        put_text(out, r->causes[i].sentence);
        fputs(" (", out);
        put_text(out, r->causes[i].reference);
        fputs(").", out);
        if (r->causes[i].evidence[0]) {
            fputs(" Evidence: ", out);
            put_text(out, r->causes[i].evidence);
        }
        fputc('\n', out);
    }
    if (d->replay) {
        fputs("\n", out);
        put_code(out, d->replay);
    }
}

static void put_item(FILE *out, const void *what)
{
    const result *x = what;
    char *id = result_id(x);
    fprintf(out, "| %s | ", verdict_name(x->verdict));
    put_text(out, id ? id : x->case_name);
    free(id);
    fputs(" | ", out);
    put_text(out, x->block ? x->block : "");
    fprintf(out, " | %.3g | %.3g | %.3g | %.7g | %.7g |\n", x->rel_l2, x->budget, result_used(x),
            x->expected, x->actual);
}

static void put_tie(FILE *out, const void *what)
{
    const tie_count *t = what;
    if (t->layer >= 0)
        fprintf(out, "| %d ", t->layer);
    else
        fputs("| – ", out);
    fputs("| ", out);
    put_text(out, dsv4_tap_name(t->tap));
    fprintf(out, " | %lld | %lld | %lld | %lld | %lld |\n", (long long)t->context,
            (long long)t->rows, (long long)t->ties, (long long)t->flips, (long long)t->changed);
}

static void put_waiver(FILE *out, const void *what)
{
    const waiver *w = what;
    fprintf(out, "| %s | ", waiver_state(w));
    put_text(out, w->pattern);
    fprintf(out, " | %zu | ", w->excused);
    put_text(out, w->reason);
    fputs(" | ", out);
    put_text(out, w->link);
    fputs(" | ", out);
    put_text(out, w->owner);
    fprintf(out, " | %s |\n", w->expires);
}

static void put_baseline_head(FILE *out, const void *what)
{
    const baseline *b = what;
    fputs("\n### Against the baseline\n\n", out);
    put_text(out, b->file);
    if (b->date)
        fprintf(out, " of %.40s", b->date);
    fprintf(out, ": %zu worse, %zu better, %zu new, %zu gone, %zu within noise.\n",
            b->counts[CHANGE_WORSE], b->counts[CHANGE_BETTER], b->counts[CHANGE_NEW],
            b->counts[CHANGE_GONE], b->same);
    if (b->n > 0)
        fputs(
            "\n| change | what | before | after | verdict | beyond |\n|---|---|--:|--:|---|---|\n",
            out);
}

static void put_change(FILE *out, const void *what)
{
    const baseline_change *c = what;
    fprintf(out, "| %s | ", change_name(c->kind));
    put_text(out, c->id);
    if (c->before_verdict[0])
        fprintf(out, " | %.3g | ", c->before_rel_l2);
    else
        fputs(" | | ", out);
    if (c->now)
        fprintf(out, "%.3g", c->now->rel_l2);
    fprintf(out, " | %s%s%s | %s |\n", c->before_verdict,
            c->before_verdict[0] && c->now ? " → " : "",
            c->now ? verdict_name(c->now->verdict) : "", c->why);
}

static void put_line(FILE *out, const void *what)
{
    fputs("- ", out);
    put_text(out, what);
    fputc('\n', out);
}

/* ---- the sheet ------------------------------------------------------------------------------- */

static bool put_ties(sheet *s, const results *r)
{
    tie_count *ties = NULL;
    size_t n = 0;
    bool ok = results_ties(r, &ties, &n), any = false;
    for (size_t i = 0; i < n && ok; i++) {
        if (ties[i].ties + ties[i].flips + ties[i].changed == 0)
            continue;
        if (!any)
            ok = put_part(s, put_literal,
                          "\n### Ties and flips\n\nDifferent inside the noise; not failures.\n\n"
                          "| layer | tap | context | rows | ties | flips | changed |\n"
                          "|--:|---|--:|--:|--:|--:|--:|\n");
        any = true;
        ok = ok && put_part(s, put_tie, &ties[i]);
    }
    free(ties);
    return ok;
}

static bool put_lines(sheet *s, const char *title, char *const *lines, size_t n)
{
    bool ok = n == 0 || put_part(s, put_literal, title);
    for (size_t i = 0; i < n && i < LINES && ok; i++)
        ok = put_part(s, put_line, lines[i]);
    if (n > LINES)
        s->full = true;
    return ok;
}

bool report_markdown(FILE *out, const results *r)
{
    sheet s = {out, LIMIT, false};
    const result *worst[WORST];
    size_t n = report_worst(r, worst, WORST);
    bool ok = put_part(&s, put_head, r);
    if (ok && r->first_divergence)
        ok = put_part(&s, put_divergence, r);
    if (ok && n > 0)
        ok = put_part(&s, put_literal,
                      "\n### Worst\n\n| verdict | what | block | error | budget | error/budget | "
                      "expected | got |\n|---|---|---|--:|--:|--:|--:|--:|\n");
    for (size_t i = 0; i < n && ok; i++)
        ok = put_part(&s, put_item, worst[i]);
    if (ok && r->baseline)
        ok = put_part(&s, put_baseline_head, r->baseline);
    for (size_t i = 0; ok && r->baseline && i < r->baseline->n && i < CHANGES; i++)
        ok = put_part(&s, put_change, &r->baseline->items[i]);
    if (r->baseline && r->baseline->n > CHANGES)
        s.full = true;
    if (ok && r->n_waivers)
        ok = put_part(
            &s, put_literal,
            "\n### Waivers\n\n| state | pattern | failures | reason | link | owner | until "
            "|\n|---|---|--:|---|---|---|---|\n");
    for (size_t i = 0; i < r->n_waivers && ok; i++)
        ok = put_part(&s, put_waiver, &r->waivers[i]);
    ok = ok && put_ties(&s, r);
    ok = ok && put_lines(&s, "\n### Missing on the engine's side\n\n", r->missing, r->n_missing);
    ok = ok && put_lines(&s, "\n### Notes\n\n", r->notes, r->n_notes);
    if (ok && r->argv) {
        ok = put_part(&s, put_literal, "\n### Made by\n\n");
        ok = ok && put_part(&s, put_line, r->argv);
    }
    if (ok && s.full)
        fputs("\nSome rows are left out; the JSON and HTML reports hold everything.\n", out);
    return ok && fflush(out) == 0 && !ferror(out);
}
