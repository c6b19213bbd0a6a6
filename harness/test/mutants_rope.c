/* mutants_rope.c - wrong rotations: pairs, angles, tables, positions, direction. */
#include <math.h>
#include <string.h>

#include "mutants.h"

/* ---- pairs --------------------------------------------------------------------------------- */

static void rope_half_split(float *x, int64_t n, int heads, int d, int r, const float *cos,
                            const float *sin, bool inverse)
{
    int half = r / 2;
    for (int64_t i = 0; i < n; i++)
        for (int h = 0; h < heads; h++) {
            float *tail = x + (i * heads + h) * d + (d - r);
            for (int k = 0; k < half; k++) {
                float c = cos[i * half + k], s = sin[i * half + k];
                float a = tail[k], b = tail[k + half];
                s = inverse ? -s : s;
                tail[k] = a * c - b * s;
                tail[k + half] = a * s + b * c;
            }
        }
}

static void rope_first_dims(float *x, int64_t n, int heads, int d, int r, const float *cos,
                            const float *sin, bool inverse)
{
    int half = r / 2;
    for (int64_t i = 0; i < n; i++)
        for (int h = 0; h < heads; h++)
            ref_rope(x + (i * heads + h) * d, 1, 1, r, r, cos + i * half, sin + i * half, inverse);
}

static void rope_other_way(float *x, int64_t n, int heads, int d, int r, const float *cos,
                           const float *sin, bool inverse)
{
    ref_rope(x, n, heads, d, r, cos, sin, !inverse);
}

static void rope_not_inverse(float *x, int64_t n, int heads, int d, int r, const float *cos,
                             const float *sin, bool inverse)
{
    if (!inverse)
        ref_rope(x, n, heads, d, r, cos, sin, inverse);
}

static void rope_forward_again(float *x, int64_t n, int heads, int d, int r, const float *cos,
                               const float *sin, bool inverse)
{
    (void)inverse;
    ref_rope(x, n, heads, d, r, cos, sin, false);
}

/* Is it a compressed row that is rotated? They have angles of their own. */
static bool is_row(const float *cos)
{
    return now.attention && now.row_angles == cos;
}

static void rope_not_rows(float *x, int64_t n, int heads, int d, int r, const float *cos,
                          const float *sin, bool inverse)
{
    if (!is_row(cos))
        ref_rope(x, n, heads, d, r, cos, sin, inverse);
}

static void rope_not_index_rows(float *x, int64_t n, int heads, int d, int r, const float *cos,
                                const float *sin, bool inverse)
{
    if (!is_row(cos) || d == now.p->model.config.head_dim)
        ref_rope(x, n, heads, d, r, cos, sin, inverse);
}

static void rope_not_index_q(float *x, int64_t n, int heads, int d, int r, const float *cos,
                             const float *sin, bool inverse)
{
    const dsv4_config *c = &now.p->model.config;
    if (d != c->index_head_dim || heads != c->index_n_heads)
        ref_rope(x, n, heads, d, r, cos, sin, inverse);
}

/* The inverse rotation alone takes the angles of the first token of the block. */
static void rope_inverse_of_first(float *x, int64_t n, int heads, int d, int r, const float *cos,
                                  const float *sin, bool inverse)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t from = inverse ? 0 : i;
        ref_rope(x + i * heads * d, 1, heads, d, r, cos + from * (r / 2), sin + from * (r / 2),
                 inverse);
    }
}

#define ROPES(name)                                                                                \
    static void plant_##name(plan *p)                                                              \
    {                                                                                              \
        p->ops.rope = rope_##name;                                                                 \
    }
ROPES(half_split)
ROPES(first_dims)
ROPES(other_way)
ROPES(not_inverse)
ROPES(forward_again)
ROPES(not_rows)
ROPES(not_index_rows)
ROPES(not_index_q)
ROPES(inverse_of_first)

/* ---- angles -------------------------------------------------------------------------------- */

enum { HALF = 256 };

/* Angles of a block with other frequencies, positions or precision. */
typedef struct {
    float factor, magnitude;
    bool invert, round_freq, round_table;
    int64_t shift, times;
} angle_change;

static void changed(const angle_change *c, const float *inv, int half, const int64_t *positions,
                    int64_t n, float *cos, float *sin)
{
    float f[HALF];
    for (int k = 0; k < half && k < HALF; k++) {
        f[k] = c->invert ? 1 / inv[k] : inv[k] * c->factor;
        f[k] = c->round_freq ? dsv4_bf16(f[k]) : f[k];
    }
    track_rope_angles(inv, half, positions, n, cos, sin);
    for (int64_t i = 0; i < n; i++) {
        int64_t p = positions[i] * c->times + c->shift;
        ref_rope_angles(f, half, &p, 1, cos + i * half, sin + i * half);
    }
    for (int64_t i = 0; i < n * half; i++) {
        cos[i] *= c->magnitude;
        sin[i] *= c->magnitude;
    }
    if (c->round_table) {
        ref_round_bf16(cos, n * half);
        ref_round_bf16(sin, n * half);
    }
}

static const angle_change none = {.factor = 1, .magnitude = 1, .times = 1};

static void angles_inverted(const float *inv, int half, const int64_t *pos, int64_t n, float *cos,
                            float *sin)
{
    angle_change c = none;
    c.invert = true;
    changed(&c, inv, half, pos, n, cos, sin);
}

static void angles_bf16_freq(const float *inv, int half, const int64_t *pos, int64_t n, float *cos,
                             float *sin)
{
    angle_change c = none;
    c.round_freq = true;
    changed(&c, inv, half, pos, n, cos, sin);
}

static void angles_bf16_table(const float *inv, int half, const int64_t *pos, int64_t n, float *cos,
                              float *sin)
{
    angle_change c = none;
    c.round_table = true;
    changed(&c, inv, half, pos, n, cos, sin);
}

static void angles_one_late(const float *inv, int half, const int64_t *pos, int64_t n, float *cos,
                            float *sin)
{
    angle_change c = none;
    c.shift = 1;
    changed(&c, inv, half, pos, n, cos, sin);
}

static void angles_doubled(const float *inv, int half, const int64_t *pos, int64_t n, float *cos,
                           float *sin)
{
    angle_change c = none;
    c.times = 2;
    changed(&c, inv, half, pos, n, cos, sin);
}

static void angles_magnitude(const float *inv, int half, const int64_t *pos, int64_t n, float *cos,
                             float *sin)
{
    float theirs[HALF];
    angle_change c = none;
    dsv4_rope_inv_freq(&now.p->model.config, true, theirs);
    if (memcmp(theirs, inv, (size_t)half * sizeof *inv) == 0)
        c.magnitude = 0.1f * logf((float)now.p->model.config.yarn_factor) + 1;
    changed(&c, inv, half, pos, n, cos, sin);
}

/* YaRN's ramp runs the wrong way: fast dims are stretched, slow ones left alone. */
static void angles_ramp_turned(const float *inv, int half, const int64_t *pos, int64_t n,
                               float *cos, float *sin)
{
    const dsv4_config *c = &now.p->model.config;
    float theirs[HALF], plain[HALF], f[HALF];
    dsv4_config same = *c;
    same.yarn_factor = 1;
    dsv4_rope_inv_freq(c, true, theirs);
    dsv4_rope_inv_freq(&same, true, plain);
    bool compressed = memcmp(theirs, inv, (size_t)half * sizeof *inv) == 0;
    float slow = (float)(1 / c->yarn_factor);
    for (int k = 0; k < half; k++)
        f[k] = compressed ? plain[k] * (1 + slow) - theirs[k] : inv[k];
    track_rope_angles(f, half, pos, n, cos, sin);
}

static void angles_row_number(const float *inv, int half, const int64_t *pos, int64_t n, float *cos,
                              float *sin)
{
    int64_t p = pos[0];
    bool row = angles_of_row();
    if (row)
        p /= now_layer()->ratio;
    track_rope_angles(inv, half, row ? &p : pos, n, cos, sin);
}

static void angles_row_end(const float *inv, int half, const int64_t *pos, int64_t n, float *cos,
                           float *sin)
{
    int64_t p = pos[0];
    bool row = angles_of_row();
    if (row)
        p += now_layer()->ratio - 1;
    track_rope_angles(inv, half, row ? &p : pos, n, cos, sin);
}

static void angles_row_plain(const float *inv, int half, const int64_t *pos, int64_t n, float *cos,
                             float *sin)
{
    float plain[HALF];
    dsv4_rope_inv_freq(&now.p->model.config, false, plain);
    track_rope_angles(angles_of_row() ? plain : inv, half, pos, n, cos, sin);
}

/* Block tables: the compressed one replaced by the plain one; rows keep theirs. */
static void angles_block_plain(const float *inv, int half, const int64_t *pos, int64_t n,
                               float *cos, float *sin)
{
    float plain[HALF];
    dsv4_rope_inv_freq(&now.p->model.config, false, plain);
    track_rope_angles(angles_of_row() ? inv : plain, half, pos, n, cos, sin);
}

#define ANGLES(name)                                                                               \
    static void plant_angles_##name(plan *p)                                                       \
    {                                                                                              \
        p->ops.rope_angles = angles_##name;                                                        \
    }
ANGLES(inverted)
ANGLES(bf16_freq)
ANGLES(bf16_table)
ANGLES(one_late)
ANGLES(doubled)
ANGLES(magnitude)
ANGLES(ramp_turned)
ANGLES(row_number)
ANGLES(row_end)
ANGLES(row_plain)
ANGLES(block_plain)

/* ---- tables -------------------------------------------------------------------------------- */

static void angles_all_compressed(const float *inv, int half, const int64_t *pos, int64_t n,
                                  float *cos, float *sin)
{
    float theirs[HALF];
    (void)inv;
    dsv4_rope_inv_freq(&now.p->model.config, true, theirs);
    track_rope_angles(theirs, half, pos, n, cos, sin);
}
ANGLES(all_compressed)

static void plant_theta_40000(plan *p)
{
    p->model.config.compress_rope_theta = 40000;
}

static void plant_theta_10000(plan *p)
{
    p->model.config.compress_rope_theta = p->model.config.rope_theta;
}

static void plant_no_yarn(plan *p)
{
    p->model.config.yarn_factor = 1;
}

static void plant_yarn_original(plan *p)
{
    p->model.config.yarn_original_positions = 4096;
}

static void plant_yarn_betas(plan *p)
{
    double keep = p->model.config.yarn_beta_fast;
    p->model.config.yarn_beta_fast = p->model.config.yarn_beta_slow;
    p->model.config.yarn_beta_slow = keep;
}

const mutant mutants_rope[] = {
    {"rope-half-split", "Automodel e42168e16 (RP03)", "rope", 0, RUN_SHORT, plant_half_split,
     "pairs (k, k + r/2) instead of neighbours", NULL},
    {"rope-first-dims", "own", "rope", 0, RUN_SHORT, plant_first_dims,
     "the first r dims of a head are rotated, not the last", NULL},
    {"rope-other-way", "own", "rope", 0, RUN_SHORT, plant_other_way,
     "every rotation turns the other way", NULL},
    {"rope-no-inverse", "Primus 2255b56f, atlas #186 (RP10), llama.cpp #25382 (KV02)", "rope", 0,
     RUN_SHORT, plant_not_inverse, "the attention output is not rotated back", NULL},
    {"rope-forward-again", "own", "rope", 0, RUN_SHORT, plant_forward_again,
     "the attention output is rotated forward once more", NULL},
    {"rope-inverse-of-first", "own", "rope", 0, RUN_SHORT, plant_inverse_of_first,
     "the inverse rotation takes the position of the block's first token for all", NULL},
    {"rope-rows-not-rotated", "mlx-lm #1189, lucebox a1c6ace9 (RP02)", "rope", 2, RUN_SHORT,
     plant_not_rows, "compressed rows are never rotated", NULL},
    {"rope-index-rows-not-rotated", "lucebox a1c6ace9 (RP02)", "rope|indexer", 2, RUN_SHORT,
     plant_not_index_rows, "the indexer's rows are never rotated",
     "a rotation that is missing inside the indexer"},
    {"rope-index-q-not-rotated", "Primus f133beb3 (IX30)", "rope|indexer", 2, RUN_SHORT,
     plant_not_index_q, "the indexer's queries are never rotated",
     "a rotation that is missing inside the indexer"},
    {"rope-frequencies-inverted", "mlx-lm #1189 (RP11)", "rope", 0, RUN_SHORT,
     plant_angles_inverted, "frequencies are stored as their inverse", NULL},
    {"rope-frequencies-bf16", "Automodel 5233ac163 (RP13)", "rope", 0, RUN_SHORT,
     plant_angles_bf16_freq, "frequencies are rounded to bf16", NULL},
    {"rope-table-bf16", "vllm-ascend #9739 (RP14)", "rope", 0, RUN_SHORT, plant_angles_bf16_table,
     "cos and sin are rounded to bf16", NULL},
    {"rope-one-late", "own", "rope", 0, RUN_SHORT, plant_angles_one_late, "positions begin at 1",
     NULL},
    {"rope-positions-doubled", "vllm-ascend c4e231771a (RP19)", "rope", 0, RUN_SHORT,
     plant_angles_doubled, "positions are summed over two ranks", NULL},
    {"rope-magnitude", "own (YaRN's mscale)", "rope", 1, RUN_SHORT, plant_angles_magnitude,
     "YaRN's magnitude factor on cos and sin", NULL},
    {"rope-ramp-turned", "own", "rope", 1, RUN_SHORT, plant_angles_ramp_turned,
     "YaRN stretches the fast dims and leaves the slow ones", NULL},
    {"rope-row-number", "ds4 c9dd949, Primus 70a0fc06 (RP01)", "rope", 2, RUN_SHORT,
     plant_angles_row_number, "compressed row j is rotated by j, not by j * ratio", NULL},
    {"rope-row-end", "own", "rope", 1, RUN_SHORT, plant_angles_row_end,
     "compressed rows are rotated at the window's last token", NULL},
    {"rope-rows-plain", "pypto-lib b981e94c (RP15)", "rope", 2, RUN_SHORT, plant_angles_row_plain,
     "compressed rows take the plain table", NULL},
    {"rope-window-plain", "transformers #45910 (RP04)", "rope", 1, RUN_SHORT,
     plant_angles_block_plain, "q and window kv of compressed layers take the plain table", NULL},
    {"rope-all-compressed", "atlas #276 (RP06)", "rope", 0, RUN_SHORT, plant_angles_all_compressed,
     "window-only layers take the compressed table", NULL},
    {"rope-theta-40000", "Primus 70a0fc06 (RP08)", "rope", 1, RUN_SHORT, plant_theta_40000,
     "compressed base 40000", NULL},
    {"rope-one-base", "pypto-lib ef88d346 (RP15)", "rope", 1, RUN_SHORT, plant_theta_10000,
     "compressed layers take the plain base (with YaRN)", NULL},
    {"rope-no-yarn", "Automodel #2103 (RP09)", "rope", 1, RUN_SHORT, plant_no_yarn,
     "YaRN's settings are not found", NULL},
    {"rope-yarn-original", "Primus 5b833bf1 (RP08)", "rope", 1, RUN_SHORT, plant_yarn_original,
     "YaRN's original length 4096", NULL},
    {"rope-yarn-betas", "own", "rope", 1, RUN_SHORT, plant_yarn_betas,
     "beta_fast and beta_slow exchanged", NULL},
    {.name = NULL},
};
