/* kernels_cases_attention.c - the cases of attention and what leads to it (compressor, indexer,
 * top-k), of the router, SwiGLU, and of the operators that must agree bit for bit. */
#include <math.h>
#include <string.h>

#include "kernels_private.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
#define EACH_FILL(f) for (fill f = 0; f < FILL_COUNT; f++)

void cases_compressor_pool(kernel_run *k);
void cases_indexer_scores(kernel_run *k);
void cases_index_weights(kernel_run *k);
void cases_topk(kernel_run *k);
void cases_attention(kernel_run *k);
void cases_router(kernel_run *k);
void cases_swiglu(kernel_run *k);
void cases_add(kernel_run *k);
void cases_round_bf16(kernel_run *k);
void cases_round_fp8(kernel_run *k);
void cases_round_fp4(kernel_run *k);
void cases_hadamard(kernel_run *k);

static const int lengths[] = {1,  2,  3,  4,  5,  7,  8,   9,   15,  16,  17,   31,
                              32, 33, 63, 64, 65, 96, 127, 128, 129, 512, 1000, 4096};

/* n doubles, all `value`. */
static double *magnitudes(kernel_run *k, int64_t n, double value)
{
    double *p = buffer_bytes(k, (size_t)(n + 1) * sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = value;
    return p;
}

/* ---- compressor ----------------------------------------------------------------------------- */

void cases_compressor_pool(kernel_run *k)
{
    static const int dims[] = {1, 3, 7, 8, 9, 16, 17, 130, 512};
    for (int ratio = 1; ratio <= 128; ratio = ratio == 1 ? 4 : ratio * 32)
        for (int form = 0; form < 3; form++) /* one lane; two, first window; two */
            for (int d = 0; d < COUNT(dims); d++)
                EACH_FILL(f)
                {
                    int lanes = form > 0 ? 2 : 1, dim = dims[d];
                    int64_t n = (int64_t)ratio * lanes * dim;
                    if (!case_begin(k, dim == 512 && f == FILL_NOISE && form != 1,
                                    "compressor_pool/ratio=%d,lanes=%d,dim=%d%s/%s", ratio, lanes,
                                    dim, form == 1 ? ",first" : "", fill_name(f)))
                        continue;
                    float *kv = input_floats(k, n, f), *z = input_floats(k, n, f);
                    float *pkv = form == 2 ? input_floats(k, n, f) : NULL;
                    float *pz = form == 2 ? input_floats(k, n, f) : NULL;
                    float *want = output_floats(k, dim), *got = output_floats(k, dim);
                    CALL_BOTH(k, k->ref->compressor_pool(pkv, pz, kv, z, ratio, lanes, dim, want),
                              k->impl->compressor_pool(pkv, pz, kv, z, ratio, lanes, dim, got));
                    /* The result lies among the values; weights e^(z - max) err by eps (1 + |z -
                     * max|), which e^(z - max) <= 1 / |z - max| keeps small. */
                    double *mag = magnitudes(k, dim, 0);
                    for (int64_t t = 0; t < ratio; t++)
                        for (int64_t c = 0; c < dim;
                             c++) { /* fmax: a NaN spoils the result anyway */
                            int64_t at = t * lanes * dim + c, own = at + (lanes - 1) * dim;
                            mag[c] = fmax(mag[c], fabs((double)kv[own]));
                            if (pkv != NULL)
                                mag[c] = fmax(mag[c], fabs((double)pkv[at]));
                        }
                    compare_floats(k, "c", want, got, dim, mag,
                                   (16 + sqrt(2.0 * ratio)) * KERNEL_EPS);
                    case_end(k);
                }
}

/* ---- indexer -------------------------------------------------------------------------------- */

void cases_indexer_scores(kernel_run *k)
{
    static const int shapes[][3] = {{1, 1, 1},   {3, 7, 2},     {4, 16, 3},    {5, 17, 5},
                                    {4, 128, 1}, {16, 128, 7},  {64, 128, 33}, {7, 130, 16},
                                    {9, 64, 15}, {63, 48, 129}, {65, 144, 17}, {64, 128, 127}};
    for (int s = 0; s < COUNT(shapes); s++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            EACH_FILL(f)
            {
                int heads = shapes[s][0], dim = shapes[s][1], n = shapes[s][2];
                if (!case_begin(k, heads == 64 && f == FILL_NOISE,
                                "indexer_scores/heads=%d,dim=%d,rows=%d,%s/%s", heads, dim, n,
                                bf16 ? "bf16" : "float", fill_name(f)))
                    continue;
                float *q = input_floats(k, heads * dim, f), *rows = input_floats(k, n * dim, f);
                float *w = input_floats(k, heads, f == FILL_HUGE ? FILL_NOISE : f);
                float *want = output_floats(k, n), *got = output_floats(k, n);
                CALL_BOTH(k, k->ref->indexer_scores(q, rows, w, heads, dim, n, bf16, want),
                          k->impl->indexer_scores(q, rows, w, heads, dim, n, bf16, got));
                double *mag = magnitudes(k, n, 0);
                for (int j = 0; j < n; j++)
                    for (int i = 0; i < heads * dim; i++)
                        mag[j] += fabs((double)w[i / dim] * (double)q[i] *
                                       (double)rows[j * dim + i % dim]);
                /* bf16: the product, the term and the sum may each round the other way. */
                compare_floats(k, "scores", want, got, n, mag,
                               bf16 ? 3 * 0x1p-8 : (16 + sqrt(dim) + sqrt(heads)) * KERNEL_EPS);
                case_end(k);
            }
}

void cases_index_weights(kernel_run *k)
{
    for (int d = 0; d < COUNT(lengths); d++)
        EACH_FILL(f)
        {
            int heads = lengths[d] > 64 ? 64 : lengths[d], n = d % 3 + 1;
            if (!case_begin(k, heads == 64 && d == COUNT(lengths) - 1 && f == FILL_NOISE,
                            "index_weights/heads=%d,n=%d,dim=%d/%s", heads, n, 128 + d,
                            fill_name(f)))
                continue;
            float *x = input_floats(k, n * heads, f);
            float *want = copy_floats(k, x, n * heads), *got = copy_floats(k, x, n * heads);
            CALL_BOTH(k, k->ref->index_weights(want, n, heads, 128 + d),
                      k->impl->index_weights(got, n, heads, 128 + d));
            if (!k->options->bench)
                compare_floats(k, "w", want, got, n * heads, NULL, 0);
            case_end(k);
        }
}

void cases_topk(kernel_run *k)
{
    static const int ks[] = {0, 1, 2, 7, 20, 64, 512};
    for (int d = 0; d < COUNT(lengths); d++)
        for (int i = 0; i < COUNT(ks); i++)
            EACH_FILL(f)
            {
                int n = lengths[d];
                if (d == 0)
                    n = 0;
                else if (d < 5 && i > 4) /* around what is held, and few for so many threads */
                    n = d == 1 ? 16385 : d == 2 ? 3000 : d == 3 ? 2051 : 1100;
                if (!case_begin(k, n == 4096 && ks[i] == 512 && f == FILL_NOISE,
                                "topk/n=%d,k=%d/%s", n, ks[i], fill_name(f)))
                    continue;
                float *scores = input_floats(k, n, f);
                int32_t *want = output_ints(k, ks[i]), *got = output_ints(k, ks[i]);
                CALL_BOTH(k, k->ref->topk(scores, n, ks[i], want),
                          k->impl->topk(scores, n, ks[i], got));
                compare_ints(k, "rows", want, got, ks[i]);
                case_end(k);
            }
}

/* ---- attention ------------------------------------------------------------------------------ */

/* n tokens from pos0 on, window W; ratio 0, or compressed rows, all or by a list of top. */
typedef struct {
    int heads, dim, window, ratio, top;
    int64_t pos0, n;
} attention_shape;

/* Columns 4, 13, .. of every third row become as large as floats may be that are no sum of bf16
 * parts; of q they become zero. Scores stay what they are, and so do the other columns. */
static void make_far(kernel_run *k, float *x, int64_t rows, int dim, bool is_q)
{
    for (int64_t j = 0; j < rows; j++)
        for (int c = 4; c < dim; c += 9)
            x[j * dim + c] = is_q ? 0.0f : j % 3 == 0 ? x[j * dim + c] * 0x1p70f : x[j * dim + c];
    input_done(k, x);
}

/* The largest error of a token's scores, as a share of e^score: eps * sum |q row|, a few times. */
static double score_error(const dsv4_attention_args *a, int64_t window_rows, int64_t rows)
{
    double most = 0;
    for (int64_t i = 0; i < a->n * a->heads; i++) {
        const float *q = a->q + i * a->dim;
        for (int64_t j = 0; j < window_rows + rows; j++) {
            const float *row =
                j < window_rows ? a->window + j * a->dim : a->rows + (j - window_rows) * a->dim;
            double sum = 0;
            for (int c = 0; c < a->dim; c++)
                sum += fabs((double)q[c] * (double)row[c]);
            most = sum > most ? sum : most;
        }
    }
    return 4 * KERNEL_EPS * most / sqrt((double)a->dim);
}

static void one_attention(kernel_run *k, const attention_shape *s, fill f, bool far, bool timed)
{
    if (!case_begin(k, timed,
                    "attention/heads=%d,dim=%d,window=%d,ratio=%d,top=%d,pos=%d,n=%d%s/%s",
                    s->heads, s->dim, s->window, s->ratio, s->top, (int)s->pos0, (int)s->n,
                    far ? ",far" : "", fill_name(f)))
        return;
    int64_t first = s->pos0 - s->window + 1 > 0 ? s->pos0 - s->window + 1 : 0;
    int64_t window_rows = s->pos0 + s->n - first;
    int64_t rows = s->ratio > 0 ? (s->pos0 + s->n) / s->ratio : 0;
    int64_t total = s->n * s->heads * s->dim;
    float *q = input_floats(k, total, f), *window = input_floats(k, window_rows * s->dim, f);
    float *compressed = rows > 0 ? input_floats(k, rows * s->dim, f) : NULL;
    if (far) {
        make_far(k, q, s->n * s->heads, s->dim, true);
        make_far(k, window, window_rows, s->dim, false);
        make_far(k, compressed, rows, s->dim, false);
    }
    dsv4_attention_args a = {.n = s->n,
                             .pos0 = s->pos0,
                             .heads = s->heads,
                             .dim = s->dim,
                             .q = q,
                             .window = window,
                             .window_pos0 = first,
                             .window_size = s->window,
                             .rows = compressed,
                             .ratio = s->ratio,
                             .k = s->top,
                             .sink = input_floats(k, s->heads, f)};
    if (s->top > 0) {
        int32_t *list = buffer_bytes(k, (size_t)(s->n * s->top) * sizeof *list);
        for (int64_t i = 0; i < s->n * s->top; i++) /* some of them not visible yet, some none */
            list[i] = rows == 0 || noise_below(k, 5) == 0 ? -1 : noise_below(k, (int)rows);
        input_done(k, list);
        a.topk = list;
    }
    float *want = output_floats(k, total), *got = output_floats(k, total);
    bool one = false, two = false;
    CALL_BOTH(k, one = k->ref->attention(&a, want), two = k->impl->attention(&a, got));
    if (!one || !two)
        case_fail(k, "expected true, found false");
    if (!k->options->bench) {
        /* The output lies among the rows' values in its column. */
        double *mag = magnitudes(k, total, 0);
        for (int c = 0; c < s->dim; c++) {
            double most = 0;
            for (int64_t i = 0; i < window_rows; i++)
                most = fmax(most, fabs((double)window[i * s->dim + c]));
            for (int64_t i = 0; i < rows; i++)
                most = fmax(most, fabs((double)compressed[i * s->dim + c]));
            for (int64_t i = c; i < total; i += s->dim)
                mag[i] = most;
        }
        double sum = sqrt((double)(s->window + rows)), error = score_error(&a, window_rows, rows);
        compare_floats(k, "out", want, got, total, mag, (16 + sum) * KERNEL_EPS + 2 * error);
    }
    case_end(k);
}

void cases_attention(kernel_run *k)
{
    static const attention_shape shapes[] = {
        {1, 1, 1, 0, 0, 0, 1},       {3, 7, 4, 0, 0, 0, 5},       {4, 16, 8, 0, 0, 3, 9},
        {5, 17, 8, 4, 0, 11, 6},     {8, 33, 16, 4, 3, 30, 5},    {4, 64, 128, 0, 0, 200, 3},
        {6, 48, 72, 128, 0, 383, 2}, {8, 192, 72, 4, 20, 299, 2}, {2, 40, 3, 4, 5, 2, 3},
        {12, 68, 40, 4, 30, 400, 1}, {10, 512, 30, 4, 9, 900, 2}, {70, 136, 20, 4, 6, 99, 2},
    };
    /* Numbers of rows around the edges of tiles and splits, and many tokens at a time. */
    static const int rows[] = {1, 15, 16, 17, 31, 32, 33, 127, 128, 129, 255, 257, 640};
    static const attention_shape many[] = {
        {64, 48, 16, 4, 4, 40, 4},    {65, 33, 8, 4, 0, 20, 5},    {63, 20, 8, 0, 0, 3, 33},
        {9, 512, 24, 4, 20, 200, 34}, {16, 64, 20, 4, 0, 300, 40}, {1, 64, 128, 4, 0, 15871, 1},
        {3, 260, 24, 4, 0, 4599, 2}};
    static const attention_shape far[] = {
        {12, 68, 40, 4, 30, 400, 1}, {10, 512, 30, 4, 9, 900, 2}, {5, 20, 8, 4, 3, 30, 2},
        {3, 260, 24, 4, 0, 4599, 2}, {64, 48, 16, 4, 4, 40, 4},   {9, 512, 24, 4, 20, 200, 34}};
    static const attention_shape flash = {64, 512, 128, 4, 512, 4095, 1};
    static const attention_shape flash_far = {8, 512, 128, 128, 0, 16383, 1};
    for (int s = 0; s < COUNT(shapes); s++)
        EACH_FILL(f)
    one_attention(k, &shapes[s], f, false, false);
    for (int r = 0; r < COUNT(rows); r++) {
        attention_shape s = {7, 72, rows[r], 0, 0, rows[r] + 2, r % 5 == 0 ? 4 : 1};
        one_attention(k, &s, FILL_NOISE, false, false);
    }
    for (int s = 0; s < COUNT(many); s++)
        for (fill f = FILL_NONFINITE; f < FILL_COUNT; f++)
            one_attention(k, &many[s], f, false, false);
    for (int s = 0; s < COUNT(far); s++)
        one_attention(k, &far[s], FILL_NOISE, true, false);
    one_attention(k, &flash, FILL_NOISE, false, true);
    one_attention(k, &flash_far, FILL_NOISE, false, true);
}

/* ---- router, SwiGLU ------------------------------------------------------------------------- */

void cases_router(kernel_run *k)
{
    static const int shapes[][2] = {{1, 1}, {7, 2}, {8, 3}, {12, 3}, {17, 6}, {256, 6}, {384, 6}};
    for (int s = 0; s < COUNT(shapes); s++)
        for (int form = 0; form < 3; form++) /* by score, by score + bias, by token id */
            EACH_FILL(f)
            {
                static const char *const forms[] = {"plain", "bias", "hash"};
                int E = shapes[s][0], K = shapes[s][1];
                enum { N = 3, IDS = 10 };
                if (!case_begin(k, E >= 256 && form == 1 && f == FILL_NOISE,
                                "router/experts=%d,k=%d,%s/%s", E, K, forms[form], fill_name(f)))
                    continue;
                float *logits = input_floats(k, N * E, f);
                float *bias = form == 1 ? input_floats(k, E, f) : NULL;
                int32_t *table = buffer_bytes(k, sizeof *table * (size_t)(IDS * K));
                int32_t ids[N];
                for (int i = 0; i < IDS * K; i++)
                    table[i] = noise_below(k, E);
                for (int i = 0; i < N; i++)
                    ids[i] = noise_below(k, IDS);
                input_done(k, table);
                dsv4_tensor hash = {.name = "tid2eid",
                                    .type = DSV4_I32,
                                    .rows = IDS,
                                    .cols = K,
                                    .data = (const uint8_t *)table,
                                    .row_bytes = sizeof *table * (size_t)K};
                const dsv4_tensor *by_id = form == 2 ? &hash : NULL;
                int32_t *want = output_ints(k, N * K), *got = output_ints(k, N * K);
                float *w = output_floats(k, N * K), *w2 = output_floats(k, N * K);
                CALL_BOTH(k, k->ref->router(logits, bias, by_id, ids, N, E, K, 1.5f, want, w),
                          k->impl->router(logits, bias, by_id, ids, N, E, K, 1.5f, got, w2));
                compare_ints(k, "experts", want, got, N * K);
                compare_floats(k, "weights", w, w2, N * K, NULL, 8 * KERNEL_EPS);
                case_end(k);
            }
}

void cases_swiglu(kernel_run *k)
{
    for (int d = 0; d < COUNT(lengths); d++)
        for (int form = 0; form < 3; form++) /* a limit, none, h = gate */
            EACH_FILL(f)
            {
                static const char *const forms[] = {"limit", "free", "in-place"};
                int n = lengths[d];
                float limit = form == 1 ? 0.0f : 2.5f;
                if (!case_begin(k, n == 4096 && f == FILL_NOISE && form == 0, "swiglu/n=%d,%s/%s",
                                n, forms[form], fill_name(f)))
                    continue;
                float *gate = input_floats(k, n, f), *up = input_floats(k, n, f);
                if (f == FILL_NOISE) { /* the range where e^-g matters, and its ends */
                    for (int i = 0; i < n; i++)
                        gate[i] *= 110.0f;
                    input_done(k, gate);
                }
                float *want = output_floats(k, n);
                float *got = form == 2 ? copy_floats(k, gate, n) : output_floats(k, n);
                CALL_BOTH(k, k->ref->swiglu(gate, up, limit, n, want),
                          k->impl->swiglu(form == 2 ? got : gate, up, limit, n, got));
                /* Where e^-g leaves float32 the product is below 1e-36 of the other factor. */
                double *mag = magnitudes(k, n, 0);
                for (int i = 0; i < n; i++)
                    mag[i] = fabs((double)want[i]) + 1e-29 * fabs((double)up[i]);
                compare_floats(k, "h", want, got, n, mag, 8 * KERNEL_EPS);
                case_end(k);
            }
}

/* ---- bit for bit ---------------------------------------------------------------------------- */

void cases_add(kernel_run *k)
{
    for (int d = 0; d < COUNT(lengths); d++)
        EACH_FILL(f)
        {
            int n = lengths[d];
            if (!case_begin(k, n == 4096 && f == FILL_NOISE, "add/n=%d/%s", n, fill_name(f)))
                continue;
            float *x = input_floats(k, n, f), *y = input_floats(k, n, f);
            float *want = copy_floats(k, x, n), *got = copy_floats(k, x, n);
            CALL_BOTH(k, k->ref->add(want, y, n), k->impl->add(got, y, n));
            if (!k->options->bench)
                compare_floats(k, "x", want, got, n, NULL, 0);
            case_end(k);
        }
}

void cases_round_bf16(kernel_run *k)
{
    for (int d = 0; d < COUNT(lengths); d++)
        EACH_FILL(f)
        {
            int n = lengths[d];
            if (!case_begin(k, n == 4096 && f == FILL_NOISE, "round_bf16/n=%d/%s", n, fill_name(f)))
                continue;
            float *x = input_floats(k, n, f);
            float *want = copy_floats(k, x, n), *got = copy_floats(k, x, n);
            CALL_BOTH(k, k->ref->round_bf16(want, n), k->impl->round_bf16(got, n));
            compare_floats(k, "x", want, got, n, NULL, 0);
            case_end(k);
        }
}

void cases_round_fp8(kernel_run *k)
{
    static const int shapes[][3] = {{1, 64, 1},     {7, 64, 9},     {64, 64, 64},
                                    {65, 64, 70},   {128, 64, 128}, {130, 128, 131},
                                    {200, 17, 200}, {448, 64, 512}, {4096, 128, 4096}};
    for (int s = 0; s < COUNT(shapes); s++)
        EACH_FILL(f)
        {
            int dim = shapes[s][0], block = shapes[s][1], ld = shapes[s][2], n = s % 3 + 1;
            if (!case_begin(k, dim == 4096 && f == FILL_NOISE, "round_fp8/dim=%d,block=%d,n=%d/%s",
                            dim, block, n, fill_name(f)))
                continue;
            int64_t total = (int64_t)(n - 1) * ld + dim;
            float *x = input_floats(k, total, f);
            float *want = copy_floats(k, x, total), *got = copy_floats(k, x, total);
            CALL_BOTH(k, k->ref->round_fp8(want, n, ld, dim, block),
                      k->impl->round_fp8(got, n, ld, dim, block));
            compare_floats(k, "x", want, got, total, NULL, 0);
            case_end(k);
        }
}

void cases_round_fp4(kernel_run *k)
{
    static const int shapes[][2] = {{1, 32}, {7, 32},   {32, 32},  {33, 32},
                                    {50, 9}, {128, 32}, {4096, 32}};
    for (int s = 0; s < COUNT(shapes); s++)
        EACH_FILL(f)
        {
            int dim = shapes[s][0], block = shapes[s][1], n = s % 3 + 1;
            if (!case_begin(k, dim == 4096 && f == FILL_NOISE, "round_fp4/dim=%d,block=%d,n=%d/%s",
                            dim, block, n, fill_name(f)))
                continue;
            int64_t total = (int64_t)n * dim;
            float *x = input_floats(k, total, f);
            float *want = copy_floats(k, x, total), *got = copy_floats(k, x, total);
            CALL_BOTH(k, k->ref->round_fp4(want, n, dim, block),
                      k->impl->round_fp4(got, n, dim, block));
            compare_floats(k, "x", want, got, total, NULL, 0);
            case_end(k);
        }
}

void cases_hadamard(kernel_run *k)
{
    for (int dim = 1; dim <= 1024; dim *= 2)
        EACH_FILL(f)
        {
            int n = dim % 3 + 1;
            int64_t total = (int64_t)n * dim;
            if (!case_begin(k, dim == 128 && f == FILL_NOISE, "hadamard/dim=%d,n=%d/%s", dim, n,
                            fill_name(f)))
                continue;
            float *x = input_floats(k, total, f);
            float *want = copy_floats(k, x, total), *got = copy_floats(k, x, total);
            CALL_BOTH(k, k->ref->hadamard(want, n, dim), k->impl->hadamard(got, n, dim));
            if (!k->options->bench)
                compare_floats(k, "x", want, got, total, NULL, 0);
            case_end(k);
        }
}
