/* test_attention.c - windowed and compressed attention with a sink. */
#include "support.h"

/* The operator computes in double and rounds its result once. */
#define TOLERANCE (2 * ROUNDING)

enum { NO_SINK = -1000000 }; /* a sink so low that it has no share */

/* ---- by definition, with mistakes to order ------------------------------------------------ */

typedef enum {
    RIGHT,
    SINK_LEFT_OUT,
    SINK_IS_A_ROW_OF_ZEROS, /* a score of 0 instead of the sink's */
    SCALE_LEFT_OUT,
    WINDOW_ONE_LONGER,
    WINDOW_ONE_SHORTER,
    ROWS_ONE_TOKEN_LATE, /* visible to t: j < t / ratio */
    ROWS_ALL_VISIBLE,
    TOPK_LEFT_OUT,
    TWO_SOFTMAXES, /* window and compressed rows apart, then averaged */
    ONE_SINK_FOR_ALL_HEADS,
    MISTAKES,
} mistake;

/* Adds row's share to the running sums of one softmax (scores are small here: no maximum). */
static void take_row(const float *q, const float *row, int dim, double scale, double *sum,
                     double *out)
{
    double dot = 0;
    for (int k = 0; k < dim; k++)
        dot += (double)q[k] * (double)row[k];
    double e = exp(dot * scale);
    *sum += e;
    for (int k = 0; k < dim; k++)
        out[k] += e * (double)row[k];
}

static bool chosen(const dsv4_attention_args *a, int64_t i, int64_t j)
{
    for (int s = 0; s < a->k; s++)
        if (a->topk[i * a->k + s] == j)
            return true;
    return false;
}

enum { MOST_DIM = 16 };

static void attention_by_definition(const dsv4_attention_args *a, mistake m, int64_t all_rows,
                                    float *out)
{
    double scale = m == SCALE_LEFT_OUT ? 1 : 1 / sqrt(a->dim);
    int W = a->window_size + (m == WINDOW_ONE_LONGER) - (m == WINDOW_ONE_SHORTER);
    for (int64_t i = 0; i < a->n; i++)
        for (int h = 0; h < a->heads; h++) {
            const float *q = a->q + (i * a->heads + h) * a->dim;
            int64_t t = a->pos0 + i, rows = 0;
            double sums[2] = {0}, o[2][MOST_DIM] = {{0}};
            for (int64_t p = t - W + 1 > a->window_pos0 ? t - W + 1 : a->window_pos0; p <= t; p++)
                take_row(q, a->window + (p - a->window_pos0) * a->dim, a->dim, scale, &sums[0],
                         o[0]);
            if (a->ratio > 0)
                rows = m == ROWS_ALL_VISIBLE      ? all_rows
                       : m == ROWS_ONE_TOKEN_LATE ? t / a->ratio
                                                  : (t + 1) / a->ratio;
            int part = m == TWO_SOFTMAXES;
            for (int64_t j = 0; j < rows; j++)
                if (a->topk == NULL || m == TOPK_LEFT_OUT || chosen(a, i, j))
                    take_row(q, a->rows + j * a->dim, a->dim, scale, &sums[part], o[part]);
            double sink = exp((double)a->sink[m == ONE_SINK_FOR_ALL_HEADS ? 0 : h]);
            if (m == SINK_IS_A_ROW_OF_ZEROS)
                sink = 1;
            if (m != SINK_LEFT_OUT)
                sums[0] += sink;
            for (int k = 0; k < a->dim; k++) {
                double v = o[0][k] / sums[0];
                if (part == 1 && sums[1] > 0)
                    v = (v + o[1][k] / sums[1]) / 2;
                out[(i * a->heads + h) * a->dim + k] = (float)v;
            }
        }
}

/* A block in the middle of a sequence: window rows from position 2 on, more
 * compressed rows than are visible yet. */
enum { N = 6, POS0 = 13, H = 3, DIM = 10, W = 5, K = 3, RATIO = 2, ROWS = 12, FIRST = 2 };

typedef struct {
    float q[N * H * DIM], window[(POS0 + N - FIRST) * DIM], rows[ROWS * DIM], sink[H];
    int32_t topk[N * K];
    dsv4_attention_args args;
} block;

static void block_fill(block *b)
{
    noise_fill(1, b->q, N * H * DIM, 2);
    noise_fill(2, b->window, (POS0 + N - FIRST) * DIM, 1);
    noise_fill(3, b->rows, ROWS * DIM, 1);
    noise_fill(4, b->sink, H, 2);
    for (int i = 0; i < N; i++) {
        int visible_rows = (POS0 + i + 1) / RATIO; /* the list names one row more, or none */
        const int32_t some[K] = {i, i % 2 ? -1 : visible_rows, visible_rows - 1};
        memcpy(b->topk + i * K, some, sizeof some);
    }
    b->args = (dsv4_attention_args){
        .n = N,
        .pos0 = POS0,
        .heads = H,
        .dim = DIM,
        .q = b->q,
        .window = b->window,
        .window_pos0 = FIRST,
        .window_size = W,
        .rows = b->rows,
        .ratio = RATIO,
        .topk = b->topk,
        .k = K,
        .sink = b->sink,
    };
}

START_TEST(attention_matches_the_definition_and_no_mistaken_one)
{
    block b;
    float out[N * H * DIM], other[N * H * DIM];
    block_fill(&b);
    for (int with_topk = 0; with_topk < 2; with_topk++) {
        b.args.topk = with_topk ? b.topk : NULL;
        ck_assert(ops()->attention(&b.args, out));
        for (int m = RIGHT; m < MISTAKES; m++) {
            attention_by_definition(&b.args, (mistake)m, ROWS, other);
            double apart = largest_difference(out, other, N * H * DIM);
            if (m == RIGHT)
                ck_assert_msg(apart <= TOLERANCE, "off by %g", apart);
            else if (with_topk || m != TOPK_LEFT_OUT)
                ck_assert_msg(apart > 100 * TOLERANCE, "mistake %d passes: %g", m, apart);
        }
    }
}
END_TEST

START_TEST(attention_without_compressed_rows_reads_none)
{
    block b;
    float out[N * H * DIM], right[N * H * DIM];
    block_fill(&b);
    b.args.ratio = 0;
    b.args.rows = NULL;
    b.args.topk = NULL;
    ck_assert(ops()->attention(&b.args, out));
    attention_by_definition(&b.args, RIGHT, 0, right);
    ck_assert(largest_difference(out, right, N * H * DIM) <= TOLERANCE);
}
END_TEST

START_TEST(a_block_gives_what_its_tokens_give_one_by_one)
{
    block b;
    float out[N * H * DIM], one[H * DIM];
    block_fill(&b);
    ck_assert(ops()->attention(&b.args, out));
    for (int i = 0; i < N; i++) {
        dsv4_attention_args a = b.args;
        a.n = 1;
        a.pos0 += i;
        a.q += i * H * DIM;
        a.topk += i * K;
        ck_assert(ops()->attention(&a, one));
        ck_assert(same_bits(one, out + i * H * DIM, H * DIM));
    }
    b.args.n = 0;
    out[0] = 77;
    ck_assert(ops()->attention(&b.args, out));
    ck_assert(out[0] == 77);
}
END_TEST

/* ---- the sink ----------------------------------------------------------------------------- */

static dsv4_attention_args one_head(const float *q, const float *window, int dim, const float *sink)
{
    return (dsv4_attention_args){
        .n = 1,
        .heads = 1,
        .dim = dim,
        .q = q,
        .window = window,
        .window_size = 4,
        .sink = sink,
    };
}

START_TEST(a_single_row_without_a_sink_comes_back)
{
    float q[DIM], row[DIM], out[DIM];
    const float sink[1] = {NO_SINK};
    noise_fill(5, q, DIM, 3);
    noise_fill(6, row, DIM, 3);
    dsv4_attention_args a = one_head(q, row, DIM, sink);
    ck_assert(ops()->attention(&a, out));
    ck_assert(same_bits(out, row, DIM));
}
END_TEST

START_TEST(the_sink_takes_its_share_and_gives_nothing)
{
    const float q[1] = {0}, row[1] = {12};
    float out;
    float sink[1] = {0};
    dsv4_attention_args a = one_head(q, row, 1, sink);
    ck_assert(ops()->attention(&a, &out));
    ASSERT_NEAR(out, 6, TOLERANCE); /* 1 / (1 + 1) */
    sink[0] = (float)log(2);
    ck_assert(ops()->attention(&a, &out));
    ASSERT_NEAR(out, 4, TOLERANCE);                   /* 1 / (1 + 2); log(2) is rounded */
    ASSERT_CAUGHT(fabs(12 - (double)out), TOLERANCE); /* twin: no sink */
    sink[0] = 1e4f;
    ck_assert(ops()->attention(&a, &out));
    ck_assert(out == 0); /* a sink that takes everything */
}
END_TEST

START_TEST(scores_are_divided_by_the_root_of_dim)
{
    /* q.row = 4 log(3) for the first row, 0 for the second; dim 16: weights 3/4, 1/4 */
    float q[16] = {0}, rows[32] = {0}, out[16];
    const float sink[1] = {NO_SINK};
    q[0] = (float)log(3);
    rows[0] = 4;
    rows[17] = 8;
    dsv4_attention_args a = one_head(q, rows, 16, sink);
    a.pos0 = 1;
    ck_assert(ops()->attention(&a, out));
    ASSERT_NEAR(out[0], 3, 2 * TOLERANCE); /* log(3) is rounded */
    ASSERT_NEAR(out[1], 2, 2 * TOLERANCE);
}
END_TEST

/* ---- what is visible ---------------------------------------------------------------------- */

/* With q = 0 and no sink the result is the mean of the visible rows. Window row p holds 2^p in
 * channel 0, compressed row j 2^j in channel 1, channel 2 counts: the sums name the rows. */
typedef struct {
    unsigned window, rows; /* bit sets */
} seen;

static seen visible(int64_t t, int window_size, int ratio, const int32_t *topk, int k)
{
    enum { POSITIONS = 20 };
    const float q[3] = {0}, sink[1] = {NO_SINK};
    float window[POSITIONS * 3], rows[POSITIONS * 3], out[3];
    for (int p = 0; p < POSITIONS; p++) {
        const float a[3] = {ldexpf(1, p), 0, 1}, b[3] = {0, ldexpf(1, p), 0};
        memcpy(window + 3 * p, a, sizeof a);
        memcpy(rows + 3 * p, b, sizeof b);
    }
    dsv4_attention_args a = {
        .n = 1,
        .pos0 = t,
        .heads = 1,
        .dim = 3,
        .q = q,
        .window = window,
        .window_size = window_size,
        .rows = ratio > 0 ? rows : NULL,
        .ratio = ratio,
        .topk = topk,
        .k = k,
        .sink = sink,
    };
    ck_assert(ops()->attention(&a, out));
    int64_t in_window = t + 1 < window_size ? t + 1 : window_size;
    double all = (double)in_window / (double)out[2];
    return (seen){(unsigned)lround((double)out[0] * all), (unsigned)lround((double)out[1] * all)};
}

START_TEST(the_window_ends_at_the_token_and_is_w_long)
{
    ck_assert_uint_eq(visible(0, 4, 0, NULL, 0).window, 0x01);
    ck_assert_uint_eq(visible(2, 4, 0, NULL, 0).window, 0x07); /* t < W - 1: from the start */
    ck_assert_uint_eq(visible(3, 4, 0, NULL, 0).window, 0x0f); /* t = W - 1: full */
    ck_assert_uint_eq(visible(4, 4, 0, NULL, 0).window, 0x1e); /* t = W: the first one leaves */
    ck_assert_uint_eq(visible(9, 4, 0, NULL, 0).window, 0x3c0);
    ck_assert_uint_eq(visible(9, 1, 0, NULL, 0).window, 0x200);
    ck_assert_uint_ne(visible(4, 5, 0, NULL, 0).window, 0x1e); /* twin: W + 1 */
}
END_TEST

START_TEST(a_compressed_row_is_visible_from_its_last_token_on)
{
    ck_assert_uint_eq(visible(2, 1, 4, NULL, 0).rows, 0x0);
    ck_assert_uint_eq(visible(3, 1, 4, NULL, 0).rows, 0x1); /* twin, j < t / ratio: none */
    ck_assert_uint_eq(visible(4, 1, 4, NULL, 0).rows, 0x1); /* twin, rounded up: two */
    ck_assert_uint_eq(visible(6, 1, 4, NULL, 0).rows, 0x1);
    ck_assert_uint_eq(visible(7, 1, 4, NULL, 0).rows, 0x3);
    ck_assert_uint_eq(visible(15, 1, 4, NULL, 0).rows, 0xf); /* all, whatever the window */
}
END_TEST

START_TEST(the_list_of_rows_skips_minus_1_and_rows_that_are_not_complete)
{
    const int32_t some[5] = {2, -1, 0, 4, -1}, late[2] = {1, 2}, none[2] = {-1, -1};
    ck_assert_uint_eq(visible(19, 1, 4, some, 5).rows, 0x15);
    ck_assert_uint_eq(visible(11, 1, 4, some, 5).rows, 0x05); /* row 4 comes at t = 19 */
    ck_assert_uint_eq(visible(10, 1, 4, late, 2).rows, 0x02);
    ck_assert_uint_eq(visible(2, 1, 4, late, 2).rows, 0);
    ck_assert_uint_eq(visible(19, 1, 4, none, 2).rows, 0);
}
END_TEST

/* ---- invariances -------------------------------------------------------------------------- */

START_TEST(a_constant_added_to_all_scores_changes_nothing)
{
    enum { D = 4, T = 4 };
    float q[D] = {2, 0.5f, -1, 0.25f}, window[T * D], moved[T * D], out[D], other[D];
    float sink[1] = {0.5f};
    noise_fill(7, window, T * D, 1);
    memcpy(moved, window, sizeof moved);
    for (int p = 0; p < T; p++)
        moved[p * D] = (window[p * D] = 0) + 64; /* channel 0: + 64 * 2 / sqrt(4) */
    dsv4_attention_args a = one_head(q, window, D, sink);
    a.pos0 = T - 1;
    ck_assert(ops()->attention(&a, out));
    a.window = moved;
    ck_assert(ops()->attention(&a, other));
    ASSERT_CAUGHT(largest_difference(out + 1, other + 1, D - 1), TOLERANCE); /* not the sink's */
    sink[0] += 64;
    ck_assert(ops()->attention(&a, other));
    ck_assert(largest_difference(out + 1, other + 1, D - 1) <= TOLERANCE);
}
END_TEST

START_TEST(huge_scores_overflow_nothing)
{
    const float q[2] = {1e19f, 1e19f}, rows[4] = {1e19f, 0, 0, -1e19f};
    float sink[1] = {1e30f}, out[2];
    dsv4_attention_args a = one_head(q, rows, 2, sink);
    a.pos0 = 1;
    ck_assert(ops()->attention(&a, out)); /* scores about +-7e37: the first row alone */
    ck_assert(out[0] == 1e19f && out[1] == 0);
    sink[0] = 3e38f;
    ck_assert(ops()->attention(&a, out)); /* the sink alone */
    ck_assert(out[0] == 0 && out[1] == 0);
}
END_TEST

START_TEST(a_nan_stays_with_the_tokens_that_see_it)
{
    block b;
    float out[N * H * DIM];
    block_fill(&b);
    b.args.ratio = 0;
    b.window[(POS0 + 1 - FIRST) * DIM] = NAN; /* the second token's own row */
    ck_assert(ops()->attention(&b.args, out));
    for (int k = 0; k < H * DIM; k++) {
        ck_assert(isfinite(out[k]));
        ck_assert(isnan(out[H * DIM + k]));
    }
}
END_TEST

int main(void)
{
    TCase *whole = tcase_create("attention"), *sink = tcase_create("sink");
    TCase *sight = tcase_create("visibility"), *scores = tcase_create("scores");
    tcase_add_test(whole, attention_matches_the_definition_and_no_mistaken_one);
    tcase_add_test(whole, attention_without_compressed_rows_reads_none);
    tcase_add_test(whole, a_block_gives_what_its_tokens_give_one_by_one);
    tcase_add_test(sink, a_single_row_without_a_sink_comes_back);
    tcase_add_test(sink, the_sink_takes_its_share_and_gives_nothing);
    tcase_add_test(sink, scores_are_divided_by_the_root_of_dim);
    tcase_add_test(sight, the_window_ends_at_the_token_and_is_w_long);
    tcase_add_test(sight, a_compressed_row_is_visible_from_its_last_token_on);
    tcase_add_test(sight, the_list_of_rows_skips_minus_1_and_rows_that_are_not_complete);
    tcase_add_test(scores, a_constant_added_to_all_scores_changes_nothing);
    tcase_add_test(scores, huge_scores_overflow_nothing);
    tcase_add_test(scores, a_nan_stays_with_the_tokens_that_see_it);
    TCase *cases[] = {whole, sink, sight, scores};
    return run_cases("attention", cases, COUNT_OF(cases));
}
