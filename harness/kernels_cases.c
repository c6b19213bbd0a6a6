/* kernels_cases.c - the cases of every operator: which shapes and fills, what the tolerance is and
 * why. Shapes sit at the edges of register tiles (7, 8, 9, 15, 16, 17 ...), of the loops' blocks
 * and at the sizes of the Flash and Pro models. */
#include <math.h>
#include <string.h>

#include "kernels_private.h"
#include "reference/formats/formats.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
#define EACH_FILL(f) for (fill f = 0; f < FILL_COUNT; f++)

/* Lengths around the registers' 4, 8, 16 lanes and their multiples, and real ones. */
static const int lengths[] = {1,  2,  3,  4,  5,  7,  8,   9,   15,  16,  17,   31,
                              32, 33, 63, 64, 65, 96, 127, 128, 129, 512, 1000, 4096};

/* Rounding errors of a sum of n terms, in units of eps * the sum of their magnitudes: the running
 * sums of a kernel wander like the root, and a few roundings are the same for all. */
static double sum_tolerance(double n)
{
    return (16 + sqrt(n)) * KERNEL_EPS;
}

static double *input_doubles(kernel_run *k, int64_t n)
{
    double *p = buffer_bytes(k, (size_t)n * sizeof *p + sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = 0;
    return p;
}

static const dsv4_type types[] = {
    DSV4_F32,     DSV4_F16,   DSV4_BF16,  DSV4_FP8,    DSV4_FP4,    DSV4_Q8_0, DSV4_Q4_K, DSV4_Q2_K,
    DSV4_IQ2_XXS, DSV4_IQ1_S, DSV4_MXFP4, DSV4_Q4_0,   DSV4_Q4_1,   DSV4_Q5_0, DSV4_Q5_1, DSV4_Q3_K,
    DSV4_Q5_K,    DSV4_Q6_K,  DSV4_IQ3_S, DSV4_IQ4_NL, DSV4_IQ4_XS, DSV4_MLX4, DSV4_MLX8};

/* The step of x next to zero, where steps are no longer relative: CUDA's tensor cores take x in
 * bf16 parts (mma.cuh, cu_split), which keep no bits below bf16's smallest number. */
static double step_of_x(const kernel_run *k)
{
    return strcmp(k->label, "cuda") == 0 ? 0x1p-133 : 0;
}

/* mag[i][r] = sum |W[r][c] x[i][c]|; also, in units of the tolerance, one lost step of each x. */
static double *linear_magnitude(kernel_run *k, const dsv4_tensor *w, const float *x, int64_t ldx,
                                int64_t n)
{
    double step = step_of_x(k) / sum_tolerance((double)w->cols);
    double *mag = input_doubles(k, n * w->rows);
    float *row = buffer_bytes(k, (size_t)w->cols * sizeof *row);
    for (int64_t r = 0; r < w->rows; r++) {
        dsv4_tensor_row(w, r, row);
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < w->cols; c++)
                mag[i * w->rows + r] +=
                    fabs((double)row[c]) * (fabs((double)x[i * ldx + c]) + step);
    }
    return mag;
}

/* ---- linear, embed, experts ----------------------------------------------------------------- */

static void one_linear(kernel_run *k, dsv4_type type, int rows, int cols, int n, int pad, fill f,
                       bool timed)
{
    dsv4_tensor w;
    if (!case_begin(k, timed, "linear/%s/rows=%d,cols=%d,n=%d/%s", dsv4_format_of(type)->name, rows,
                    cols, n, fill_name(f)))
        return;
    int64_t ldx = cols + pad, ldy = rows + pad;
    /* The last row of a strided matrix ends where its columns do. */
    float *x = input_floats(k, n > 0 ? (n - 1) * ldx + cols : 0, f);
    float *want = output_floats(k, n > 0 ? (n - 1) * ldy + rows : 0);
    float *got = output_floats(k, n > 0 ? (n - 1) * ldy + rows : 0);
    if (!input_tensor(k, type, rows, cols, f, &w))
        case_fail(k, "no memory");
    CALL_BOTH(k, k->ref->linear(&w, x, ldx, n, want, ldy),
              k->impl->linear(&w, x, ldx, n, got, ldy));
    if (!timed || !k->options->bench) {
        double *mag = linear_magnitude(k, &w, x, ldx, n);
        for (int i = 0; i < n; i++) {
            compare_floats(k, "y", want + i * ldy, got + i * ldy, rows, mag + (int64_t)i * rows,
                           sum_tolerance(cols));
            if (i < n - 1) /* what lies between the rows is not the kernel's */
                compare_floats(k, "gap", want + i * ldy + rows, got + i * ldy + rows, pad, NULL, 0);
        }
    }
    case_end(k);
}

/* CUDA multiplies these types in whole numbers, and 16 tokens and more in bf16 parts: two orders.
 * Types with blocks of 32 columns only where 256 divides the columns and inputs are no bf16 numbers
 * (its operator then asks for one order).
 */
static bool two_orders(const kernel_run *k, dsv4_type type, int cols, int n, bool bf16)
{
    if (strcmp(k->label, "cuda") != 0 || n < 16)
        return false;
    if (type == DSV4_Q8_0 || type == DSV4_FP4 || type == DSV4_MXFP4)
        return cols % 256 == 0 && !bf16;
    return type == DSV4_Q4_K || type == DSV4_Q2_K || type == DSV4_IQ2_XXS;
}

/* A token's product is the same, bit for bit, alone and with others; bf16: of inputs that are bf16
 * numbers, which some kernels take another way. */
static void one_alone(kernel_run *k, dsv4_type type, int rows, int cols, int n, bool bf16)
{
    dsv4_tensor w;
    if (!case_begin(k, false, "linear/%s/rows=%d,cols=%d,n=%d,%s,alone/noise",
                    dsv4_format_of(type)->name, rows, cols, n, bf16 ? "bf16" : "float"))
        return;
    float *x = input_floats(k, (int64_t)n * cols, FILL_NOISE);
    if (bf16) {
        float *v = copy_floats(k, x, (int64_t)n * cols);
        for (int i = 0; i < n * cols; i++)
            v[i] = dsv4_bf16_to_f32(dsv4_f32_to_bf16(v[i]));
        input_done(k, v);
        x = v;
    }
    float *want = output_floats(k, (int64_t)n * rows), *got = output_floats(k, (int64_t)n * rows);
    if (!input_tensor(k, type, rows, cols, FILL_NOISE, &w))
        case_fail(k, "no memory");
    k->impl->linear(&w, x, cols, n, got, rows);
    for (int i = 0; i < n; i++)
        k->impl->linear(&w, x + (int64_t)i * cols, cols, 1, want + (int64_t)i * rows, rows);
    bool same = !two_orders(k, type, cols, n, bf16);
    compare_floats(k, "y", want, got, (int64_t)n * rows,
                   same ? NULL : linear_magnitude(k, &w, x, cols, n),
                   same ? 0 : sum_tolerance(cols));
    case_end(k);
}

/* Many tokens, at the edges of tiles of 16 to 128 tokens, of 128 rows and of 128 or 256 columns. */
static void cases_linear_many(kernel_run *k, dsv4_type type, int step)
{
    static const int all[] = {16, 65, 129}, more[] = {31, 63, 64, 127, 128, 200};
    int cols = step == 256 ? 512 : type == DSV4_FP8 || step == 1 ? 384 : 352;
    for (int i = 0; i < COUNT(all); i++)
        one_linear(k, type, 133, cols, all[i], 4, FILL_NOISE, false);
    for (int i = 0; i < COUNT(more) && (type == DSV4_FP8 || type == DSV4_Q4_K); i++)
        one_linear(k, type, 129, step == 256 ? 256 : 128, more[i], 0, FILL_NOISE, false);
    one_linear(k, type, 20, cols, 17, 4, FILL_NONFINITE, false);
    one_linear(k, type, 20, cols, 17, 4, FILL_OUTLIER, false);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        one_alone(k, type, 133, step == 256 ? 768 : step == 1 ? 640 : 608, 33, bf16);
        one_alone(k, type, 20, cols, 3, bf16);
        one_alone(k, type, 20, cols, 130, bf16);
        if (step == 32 && strcmp(k->label, "cuda") == 0) { /* whole chunks, two orders */
            one_alone(k, type, 35, 768, 17, bf16);
            one_alone(k, type, 35, 1024, 15, bf16);
        }
        /* Rows that a copy engine brings one by one, and as pairs; shares, and tiles of a warp. */
        static const int whole[][3] = {
            {96, 2048, 5}, {64, 1024, 3}, {64, 8192, 2}, {16384, 1024, 2}};
        bool tall = type == DSV4_IQ2_XXS && !bf16 && strcmp(k->label, "cuda") == 0;
        for (int i = 0; tall && i < COUNT(whole); i++)
            one_alone(k, type, whole[i][0], whole[i][1], whole[i][2], bf16);
    }
}

/* One to a few tokens where kernels stream tiles of 16 rows: a tile's last rows, a row shared by
 * several warps, rows of one chunk of 256 columns, of many, of a part; vectors of any alignment. */
static void cases_linear_few(kernel_run *k, dsv4_type type, int step)
{
    static const struct {
        int rows, cols, n, pad;
    } shapes[] = {{33, 1312, 1, 0}, {16, 416, 2, 0},  {17, 160, 5, 3},  {300, 544, 1, 0},
                  {48, 4352, 4, 0}, {15, 8192, 1, 0}, {3, 20480, 1, 0}, {1100, 256, 1, 0}};
    for (int i = 0; i < COUNT(shapes); i++) {
        int cols = (shapes[i].cols + step - 1) / step * step;
        one_linear(k, type, shapes[i].rows, cols, shapes[i].n, shapes[i].pad, FILL_NOISE, false);
    }
    EACH_FILL(f)
    {
        one_linear(k, type, 18, step == 256 ? 768 : 672, 1, 0, f, false);
        one_linear(k, type, 18, step == 256 ? 512 : 288, 9, 0, f, false);
        if (step == 32) { /* whole chunks of 256 columns, which some kernels take another way */
            one_linear(k, type, 18, 768, 1, 0, f, false);
            one_linear(k, type, 18, 512, 9, 0, f, false);
        }
    }
    /* More tiles than a device has warps, of sixteen on every multiprocessor: several for some. */
    if (strcmp(k->label, "cuda") == 0 && type != DSV4_F32 && type != DSV4_F16)
        one_linear(k, type, 40000, 256, 1, 0, FILL_NOISE, false);
}

static void cases_linear(kernel_run *k)
{
    static const int tokens[] = {0, 1, 2, 3, 4, 5, 31, 32, 33};
    static const int rows[] = {1, 3, 4, 5, 7};
    bool decoded_only = false;
    for (int t = 0; t < COUNT(types); t++) {
        int step = type_step(types[t]);
        EACH_FILL(f)
        {
            one_linear(k, types[t], 5, step == 1 ? 37 : step * 3, 1, 0, f, false);
            one_linear(k, types[t], 6,
                       step == 1   ? 520
                       : step == 2 ? 576
                                   : step * (1024 / step),
                       3, 3, f, false);
        }
        for (int i = 0; i < COUNT(tokens); i++)
            one_linear(k, types[t], 5, step == 1 ? 65 : step, tokens[i], 1, FILL_NOISE, false);
        for (int i = 0; i < COUNT(rows); i++)
            one_linear(k, types[t], rows[i], step == 1 ? 17 : step, 2, 0, FILL_NOISE, false);
        for (int i = 0; step == 1 && i < COUNT(lengths); i++)
            one_linear(k, types[t], 2, lengths[i], 1, 0, FILL_NOISE, false);
        for (int blocks = 1; step > 1 && blocks <= 5; blocks++)
            one_linear(k, types[t], 2, blocks * step, 1, 0, FILL_NOISE, false);
        if (!decoded_only && types[t] != DSV4_Q4_0)
            cases_linear_few(k, types[t], step);
        /* What the formats behind differ in is how they decode, which `embed` checks bit for bit:
         * the large shapes are for the clock only. */
        if (types[t] == DSV4_Q4_0)
            decoded_only = true;
        if (!decoded_only)
            cases_linear_many(k, types[t], step);
        if (decoded_only && !k->options->bench)
            continue;
        one_linear(k, types[t], 9, 7168, 2, 0, FILL_NOISE, false);  /* Pro */
        one_linear(k, types[t], 128, 4096, 1, 0, FILL_NOISE, true); /* Flash */
        one_linear(k, types[t], 64, 4096, 32, 0, FILL_NOISE, true);
    }
}

static void one_embed(kernel_run *k, dsv4_type type, int cols, fill f, bool timed)
{
    enum { N = 7, ROWS = 50 };
    int32_t ids[N];
    dsv4_tensor table;
    if (!case_begin(k, timed, "embed/%s/cols=%d/%s", dsv4_format_of(type)->name, cols,
                    fill_name(f)))
        return;
    float *want = output_floats(k, N * cols), *got = output_floats(k, N * cols);
    if (!input_tensor(k, type, ROWS, cols, f, &table))
        case_fail(k, "no memory");
    for (int i = 0; i < N; i++)
        ids[i] = i == 0 ? ROWS - 1 : noise_below(k, ROWS);
    CALL_BOTH(k, k->ref->embed(&table, ids, N, want), k->impl->embed(&table, ids, N, got));
    compare_floats(k, "x", want, got, N * cols, NULL, 0);
    case_end(k);
}

/* Bit for bit: what decodes weights for `linear` is checked here. */
static void cases_embed(kernel_run *k)
{
    for (int t = 0; t < COUNT(types); t++) {
        int step = type_step(types[t]);
        EACH_FILL(f)
        one_embed(k, types[t], step == 1 ? 262 : 2 * step, f, false);
        for (int blocks = 1; blocks <= 5; blocks++)
            one_embed(k, types[t], step == 1 ? blocks * 131 : blocks * step, FILL_NOISE,
                      blocks == 5);
        one_embed(k, types[t], step == 1 ? 1000 : 1024, FILL_NONFINITE, false);
    }
}

static void one_experts(kernel_run *k, dsv4_type type, int D, int F, int n, int n_experts, int top,
                        dsv4_numerics numerics, fill f, bool timed)
{
    enum { MOST = 8 };
    dsv4_tensor w1[MOST], w2[MOST], w3[MOST];
    if (n_experts > MOST ||
        !case_begin(k, timed, "experts/%s/D=%d,F=%d,n=%d,%s/%s", dsv4_format_of(type)->name, D, F,
                    n, dsv4_numerics_name(numerics), fill_name(f)))
        return;
    /* One stored matrix of each kind, an expert a view of it. */
    dsv4_tensor all1, all2, all3;
    bool ok = input_tensor(k, type, (int64_t)F * n_experts, D, FILL_NOISE, &all1) &&
              input_tensor(k, type, (int64_t)D * n_experts, F, FILL_NOISE, &all2) &&
              input_tensor(k, type, (int64_t)F * n_experts, D, FILL_NOISE, &all3);
    for (int e = 0; ok && e < n_experts; e++) {
        w1[e] = dsv4_tensor_rows(&all1, (int64_t)e * F, F);
        w2[e] = dsv4_tensor_rows(&all2, (int64_t)e * D, D);
        w3[e] = dsv4_tensor_rows(&all3, (int64_t)e * F, F);
    }
    dsv4_layer layer = {
        .swiglu_limit = 10.0f, .w1 = w1, .w2 = w2, .w3 = w3, .gate = {.rows = n_experts}};
    float *x = input_floats(k, (int64_t)n * D, f), *weights = input_floats(k, n * top, FILL_NOISE);
    int32_t *experts = buffer_bytes(k, (size_t)(n * top) * sizeof *experts);
    float *want = output_floats(k, (int64_t)n * D), *got = output_floats(k, (int64_t)n * D);
    for (int i = 0; i < n * top; i++)
        experts[i] = (i * 5 + i / top) % n_experts;
    input_done(k, experts);
    dsv4_experts_args a = {.n = n,
                           .k = top,
                           .layer = &layer,
                           .x = x,
                           .experts = experts,
                           .weights = weights,
                           .numerics = numerics};
    if (!ok)
        case_fail(k, "no memory");
    bool one = false, two = false;
    CALL_BOTH(k, one = k->ref->experts(&a, want), two = k->impl->experts(&a, got));
    dsv4_error err;
    if (!two && dsv4_cuda_take_error(&err) != DSV4_OK)
        case_fail(k, "%s", err.text);
    if (!one || !two)
        case_fail(k, "expected true, found %s", two ? "true, but false from the scalar" : "false");
    /* Errors of one row's elements have the size of the row, not of the element. Deployed: an FP8
     * code that flips is 2^-4 of its value, and the last rounding to bf16 2^-8. */
    double *mag = input_doubles(k, (int64_t)n * D);
    for (int i = 0; i < n; i++) {
        double power = 0;
        for (int c = 0; c < D; c++)
            power += (double)want[i * D + c] * (double)want[i * D + c];
        for (int c = 0; c < D; c++)
            mag[i * D + c] = 8 * sqrt(power / D);
    }
    compare_floats(
        k, "out", want, got, (int64_t)n * D, mag,
        numerics == DSV4_DEPLOYED ? 0.05 : sum_tolerance(D) + sum_tolerance(F) + 32 * KERNEL_EPS);
    case_end(k);
}

static void cases_experts(kernel_run *k)
{
    static const dsv4_type stored[] = {DSV4_F32, DSV4_FP8, DSV4_FP4, DSV4_Q2_K, DSV4_IQ2_XXS};
    for (int t = 0; t < COUNT(stored); t++) {
        bool blocks = type_step(stored[t]) == 256;
        for (int n = 1; n <= 5; n += 2)
            for (int mode = 0; mode < 2; mode++)
                one_experts(k, stored[t], blocks ? 256 : 96, blocks ? 256 : 160, n, 5, 3,
                            mode ? DSV4_DEPLOYED : DSV4_MATH, FILL_NOISE, false);
        one_experts(k, stored[t], 256, 512, 3, 6, 2, DSV4_MATH, FILL_ZERO, false);
        one_experts(k, stored[t], 256, 512, 3, 6, 2, DSV4_MATH, FILL_NONFINITE, false);
        one_experts(k, stored[t], 256, 512, 3, 6, 2, DSV4_MATH, FILL_OUTLIER, false);
        /* Enough for each expert that tiles of 16, 32 and (bf16 inputs) 64 pairs are taken. */
        static const int many[] = {7, 33, 86};
        int inner = blocks ? 256 : stored[t] == DSV4_FP8 ? 128 : 160;
        for (int mode = 0; mode < 2 && stored[t] != DSV4_F32; mode++)
            for (int i = 0; i < COUNT(many) - !(mode && stored[t] == DSV4_FP4); i++)
                one_experts(k, stored[t], 256, inner, many[i], 8, 3,
                            mode ? DSV4_DEPLOYED : DSV4_MATH, FILL_NOISE, false);
        one_experts(k, stored[t], 1024, 512, 1, 8, 6, DSV4_MATH, FILL_NOISE, true);
    }
}

/* ---- norms ---------------------------------------------------------------------------------- */

static void cases_rmsnorm(kernel_run *k)
{
    for (int d = 0; d < COUNT(lengths); d++)
        EACH_FILL(f)
        {
            int dim = lengths[d], n = d % 3 + 1;
            for (int form = 0; form < 3; form++) { /* with weights, without, in place */
                static const char *const forms[] = {"weights", "plain", "in-place"};
                if (!case_begin(k, dim == 4096 && f == FILL_NOISE, "rmsnorm/dim=%d,n=%d,%s/%s", dim,
                                n, forms[form], fill_name(f)))
                    continue;
                float *x = input_floats(k, (int64_t)n * dim, f);
                float *w = form == 1 ? NULL : input_floats(k, dim, FILL_NOISE);
                float *want = output_floats(k, (int64_t)n * dim);
                float *got = form == 2 ? copy_floats(k, x, (int64_t)n * dim)
                                       : output_floats(k, (int64_t)n * dim);
                CALL_BOTH(k, k->ref->rmsnorm(x, w, 1e-6f, n, dim, want),
                          k->impl->rmsnorm(form == 2 ? got : x, w, 1e-6f, n, dim, got));
                if (!(k->options->bench && form == 2)) /* by then it was normed many times */
                    compare_floats(k, "y", want, got, (int64_t)n * dim, NULL, sum_tolerance(dim));
                case_end(k);
            }
        }
}

static void cases_head_norm(kernel_run *k)
{
    for (int d = 0; d < COUNT(lengths); d++)
        EACH_FILL(f)
    for (int bf16 = 0; bf16 < 2; bf16++) {
        int dim = lengths[d], n = d % 3 + 1;
        if (!case_begin(k, dim == 512 && f == FILL_NOISE, "head_norm/dim=%d,n=%d,%s/%s", dim, n,
                        bf16 ? "bf16" : "float", fill_name(f)))
            continue;
        float *x = input_floats(k, (int64_t)n * dim, f);
        float *want = copy_floats(k, x, (int64_t)n * dim);
        float *got = copy_floats(k, x, (int64_t)n * dim);
        CALL_BOTH(k, k->ref->head_norm(want, 1e-6f, n, dim, bf16),
                  k->impl->head_norm(got, 1e-6f, n, dim, bf16));
        /* bf16: the mean, the root or the product may round the other way, a step each. */
        if (!k->options->bench)
            compare_floats(k, "q", want, got, (int64_t)n * dim, NULL,
                           bf16 ? 3 * 0x1p-8 : sum_tolerance(dim));
        case_end(k);
    }
}

/* ---- rope ----------------------------------------------------------------------------------- */

static void cases_rope_angles(kernel_run *k)
{
    for (int half = 1; half <= 33; half += half < 4 ? 1 : 29) {
        if (!case_begin(k, half == 33, "rope_angles/half=%d", half))
            continue;
        enum { N = 5 };
        static const int64_t positions[N] = {0, 1, 127, 65535, 1048575};
        float *inv = input_floats(k, half, FILL_NOISE);
        float *c = output_floats(k, N * half), *s = output_floats(k, N * half);
        float *c2 = output_floats(k, N * half), *s2 = output_floats(k, N * half);
        double *mag = input_doubles(k, N * half);
        for (int i = 0; i < N * half; i++)
            mag[i] = 1;
        CALL_BOTH(k, k->ref->rope_angles(inv, half, positions, N, c, s),
                  k->impl->rope_angles(inv, half, positions, N, c2, s2));
        compare_floats(k, "cos", c, c2, N * half, mag, 4 * KERNEL_EPS);
        compare_floats(k, "sin", s, s2, N * half, mag, 4 * KERNEL_EPS);
        case_end(k);
    }
}

static void cases_rope(kernel_run *k)
{
    static const int dims[][2] = {{2, 2},   {4, 2},   {8, 6},    {16, 8},  {20, 14},
                                  {24, 18}, {48, 32}, {192, 64}, {512, 64}};
    for (int s = 0; s < COUNT(dims); s++)
        EACH_FILL(f)
    for (int inverse = 0; inverse < 2; inverse++) {
        int d = dims[s][0], r = dims[s][1], heads = s % 4 + 1, half = r / 2;
        enum { N = 3 };
        int64_t n = (int64_t)N * heads * d;
        if (!case_begin(k, d == 512 && f == FILL_NOISE, "rope/d=%d,r=%d,heads=%d%s/%s", d, r, heads,
                        inverse ? ",inverse" : "", fill_name(f)))
            continue;
        float *x = input_floats(k, n, f), *cosine = buffer_bytes(k, sizeof(float) * N * half);
        float *sine = buffer_bytes(k, sizeof(float) * N * half);
        for (int i = 0; i < N * half; i++) {
            double angle = (double)noise_float(k) * 3.0;
            cosine[i] = (float)cos(angle);
            sine[i] = (float)sin(angle);
        }
        input_done(k, cosine);
        input_done(k, sine);
        float *want = copy_floats(k, x, n), *got = copy_floats(k, x, n);
        CALL_BOTH(k, k->ref->rope(want, N, heads, d, r, cosine, sine, inverse),
                  k->impl->rope(got, N, heads, d, r, cosine, sine, inverse));
        double *mag = input_doubles(k, n); /* of both products */
        for (int64_t i = 0; i < n; i++) {
            bool rotated = i % d >= d - r;
            int64_t pair = (i % d - (d - r)) % 2 == 0 ? i + 1 : i - 1;
            mag[i] = rotated ? fabs((double)x[i]) + fabs((double)x[pair]) : 0;
        }
        if (!k->options->bench)
            compare_floats(k, "x", want, got, n, mag, 4 * KERNEL_EPS);
        case_end(k);
    }
}

/* ---- hyper-connections ---------------------------------------------------------------------- */

static const int streams[] = {1, 2, 3, 4, 16};

static void cases_hc_mix(kernel_run *k)
{
    static const int dims[] = {1, 5, 64, 130, 4096, 256};
    for (int s = 0; s < COUNT(streams) - 1; s++)
        for (int d = 0; d < COUNT(dims); d++)
            EACH_FILL(f)
            {
                int hc = streams[s], width = hc * dims[d], rows = (2 + hc) * hc;
                int n = dims[d] == 256 ? 33 : d % 3 + 1; /* more than a device has clusters */
                dsv4_tensor fn;
                if (!case_begin(k, hc == 4 && width == 4 * 4096 && f == FILL_NOISE,
                                "hc_mix/hc=%d,dim=%d,n=%d/%s", hc, dims[d], n, fill_name(f)))
                    continue;
                float *x = input_floats(k, (int64_t)n * width, f);
                float *want = output_floats(k, (int64_t)n * rows);
                float *got = output_floats(k, (int64_t)n * rows);
                if (!input_tensor(k, DSV4_F32, rows, width, FILL_NOISE, &fn))
                    case_fail(k, "no memory");
                CALL_BOTH(k, k->ref->hc_mix(&fn, x, 1e-6f, n, want),
                          k->impl->hc_mix(&fn, x, 1e-6f, n, got));
                double *mag = linear_magnitude(k, &fn, x, width, n);
                for (int i = 0; i < n; i++) {
                    double power = 0;
                    for (int c = 0; c < width; c++)
                        power += (double)x[i * width + c] * (double)x[i * width + c];
                    for (int r = 0; r < rows; r++)
                        mag[i * rows + r] /= sqrt(power / width + 1e-6);
                }
                compare_floats(k, "m", want, got, (int64_t)n * rows, mag, sum_tolerance(width));
                case_end(k);
            }
}

/* The error of e^x grows with the error of x: eps times its size. */
static double exponent_size(const float *m, const float *scale, const float *base, int64_t n,
                            int width, int scales, int hc)
{
    double most = 0;
    for (int64_t i = 0; i < n * width; i++) {
        int c = (int)(i % width), which = c < hc ? 0 : c < 2 * hc ? 1 : 2;
        double in =
            fabs((double)m[i] * (double)scale[which < scales ? which : 0]) + fabs((double)base[c]);
        most = in > most ? in : most;
    }
    return most;
}

static void cases_hc_gates(kernel_run *k)
{
    static const int tokens[] = {1, 3, 4, 7, 8, 9, 15, 16, 17};
    for (int s = 0; s < COUNT(streams); s++)
        for (int t = 0; t < COUNT(tokens); t++)
            EACH_FILL(f)
            {
                int hc = streams[s], n = tokens[t], width = (2 + hc) * hc, iters = 20;
                const float eps = 1e-6f;
                if (!case_begin(k, hc == 4 && n <= 16 && f == FILL_NOISE, "hc_gates/hc=%d,n=%d/%s",
                                hc, n, fill_name(f)))
                    continue;
                float *m = input_floats(k, (int64_t)n * width, f);
                float *scale = input_floats(k, 3, FILL_NOISE), *base = input_floats(k, width, f);
                float *pre = output_floats(k, n * hc), *pre2 = output_floats(k, n * hc);
                float *post = output_floats(k, n * hc), *post2 = output_floats(k, n * hc);
                float *comb = output_floats(k, n * hc * hc), *comb2 = output_floats(k, n * hc * hc);
                CALL_BOTH(k, k->ref->hc_gates(m, scale, base, n, hc, iters, eps, pre, post, comb),
                          k->impl->hc_gates(m, scale, base, n, hc, iters, eps, pre2, post2, comb2));
                double size = exponent_size(m, scale, base, n, width, 3, hc);
                double tolerance = (16 + 4 * size) * KERNEL_EPS;
                compare_floats(k, "pre", pre, pre2, n * hc, NULL, tolerance);
                compare_floats(k, "post", post, post2, n * hc, NULL, tolerance);
                /* Each of the 2 * iters normalisations rounds the sum, its inverse, the product. */
                compare_floats(k, "comb", comb, comb2, n * hc * hc, NULL,
                               tolerance + 3 * 2 * iters * KERNEL_EPS);
                case_end(k);
            }
}

static void cases_hc_head_gates(kernel_run *k)
{
    for (int s = 0; s < COUNT(streams); s++)
        EACH_FILL(f)
        {
            int hc = streams[s], n = s + 1;
            if (!case_begin(k, hc == 4 && f == FILL_NOISE, "hc_head_gates/hc=%d,n=%d/%s", hc, n,
                            fill_name(f)))
                continue;
            float *m = input_floats(k, n * hc, f), *scale = input_floats(k, 1, FILL_NOISE);
            float *base = input_floats(k, hc, f);
            float *want = output_floats(k, n * hc), *got = output_floats(k, n * hc);
            CALL_BOTH(k, k->ref->hc_head_gates(m, scale, base, n, hc, 1e-6f, want),
                      k->impl->hc_head_gates(m, scale, base, n, hc, 1e-6f, got));
            double size = exponent_size(m, scale, base, n, hc, 1, hc);
            compare_floats(k, "pre", want, got, n * hc, NULL, (16 + 4 * size) * KERNEL_EPS);
            case_end(k);
        }
}

static void cases_hc_collapse(kernel_run *k)
{
    for (int s = 0; s < COUNT(streams); s++)
        for (int d = 0; d < COUNT(lengths); d++)
            EACH_FILL(f)
            {
                int hc = streams[s], n = d % 2 + 1;
                int64_t dim = lengths[d];
                if (!case_begin(k, hc == 4 && dim == 4096 && f == FILL_NOISE,
                                "hc_collapse/hc=%d,dim=%d,n=%d/%s", hc, (int)dim, n, fill_name(f)))
                    continue;
                float *x = input_floats(k, n * hc * dim, f);
                float *pre = input_floats(k, n * hc, FILL_NOISE);
                float *want = output_floats(k, n * dim), *got = output_floats(k, n * dim);
                double *mag = input_doubles(k, n * dim);
                for (int64_t i = 0; i < n * hc * dim; i++)
                    mag[i / dim / hc * dim + i % dim] += fabs((double)x[i] * (double)pre[i / dim]);
                CALL_BOTH(k, k->ref->hc_collapse(x, pre, n, hc, dim, want),
                          k->impl->hc_collapse(x, pre, n, hc, dim, got));
                compare_floats(k, "x", want, got, n * dim, mag, (4 + hc) * KERNEL_EPS);
                case_end(k);
            }
}

static void cases_hc_post(kernel_run *k)
{
    for (int s = 0; s < COUNT(streams); s++)
        for (int d = 0; d < COUNT(lengths); d++)
            EACH_FILL(f)
            {
                int hc = streams[s], n = d % 2 + 1;
                int64_t dim = lengths[d], total = n * hc * dim;
                if (!case_begin(k, hc == 4 && dim == 4096 && f == FILL_NOISE,
                                "hc_post/hc=%d,dim=%d,n=%d/%s", hc, (int)dim, n, fill_name(f)))
                    continue;
                float *block = input_floats(k, n * dim, f), *x = input_floats(k, total, f);
                float *post = input_floats(k, n * hc, FILL_NOISE);
                float *comb = input_floats(k, n * hc * hc, FILL_NOISE);
                float *want = output_floats(k, total), *got = output_floats(k, total);
                double *mag = input_doubles(k, total);
                for (int64_t i = 0; i < n; i++)
                    for (int b = 0; b < hc; b++)
                        for (int64_t c = 0; c < dim; c++) {
                            double sum =
                                fabs((double)post[i * hc + b] * (double)block[i * dim + c]);
                            for (int a = 0; a < hc; a++)
                                sum += fabs((double)comb[(i * hc + a) * hc + b] *
                                            (double)x[(i * hc + a) * dim + c]);
                            mag[(i * hc + b) * dim + c] = sum;
                        }
                CALL_BOTH(k, k->ref->hc_post(block, x, post, comb, n, hc, dim, want),
                          k->impl->hc_post(block, x, post, comb, n, hc, dim, got));
                compare_floats(k, "out", want, got, total, mag, (4 + hc) * KERNEL_EPS);
                case_end(k);
            }
}

/* ---- the table ------------------------------------------------------------------------------ */

/* kernels_cases_attention.c */
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

bool kernel_cases(kernel_run *k, int op)
{
    static const struct {
        const char *name;
        void (*cases)(kernel_run *);
    } all[] = {
        {"embed", cases_embed},
        {"linear", cases_linear},
        {"rmsnorm", cases_rmsnorm},
        {"head_norm", cases_head_norm},
        {"rope_angles", cases_rope_angles},
        {"rope", cases_rope},
        {"hc_mix", cases_hc_mix},
        {"hc_gates", cases_hc_gates},
        {"hc_head_gates", cases_hc_head_gates},
        {"hc_collapse", cases_hc_collapse},
        {"hc_post", cases_hc_post},
        {"compressor_pool", cases_compressor_pool},
        {"indexer_scores", cases_indexer_scores},
        {"index_weights", cases_index_weights},
        {"topk", cases_topk},
        {"attention", cases_attention},
        {"router", cases_router},
        {"swiglu", cases_swiglu},
        {"experts", cases_experts},
        {"add", cases_add},
        {"round_bf16", cases_round_bf16},
        {"round_fp8", cases_round_fp8},
        {"round_fp4", cases_round_fp4},
        {"hadamard", cases_hadamard},
    };
    for (int i = 0; i < COUNT(all); i++)
        if (strcmp(all[i].name, dsv4_operator_name(op)) == 0) {
            all[i].cases(k);
            return true;
        }
    return false;
}
