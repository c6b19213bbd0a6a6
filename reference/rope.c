/* rope.c - rotary positions: two tables (plain; compressed layers with YaRN), float32 angles,
 * interleaved pairs of the last r dims, and the inverse rotation of the attention output. */
#include <math.h>

#include "scalar.h"

/* corr(n) = r ln(original / (n 2 pi)) / (2 ln base): the dimension that turns n times over the
 * original context (YaRN, arXiv 2309.00071, eq. 17-18; precompute_freqs_cis of the release). */
static double correction_dim(double turns, int r, double base, double original)
{
    return (double)r * log(original / (turns * 2.0 * 3.14159265358979323846)) / (2.0 * log(base));
}

void dsv4_rope_inv_freq(const dsv4_config *c, bool compressed, float *inv_freq)
{
    int r = c->qk_rope_head_dim;
    double base = compressed ? c->compress_rope_theta : c->rope_theta;
    for (int k = 0; k < r / 2; k++)
        inv_freq[k] = (float)(1.0 / (double)powf((float)base, (float)(2 * k) / (float)r));
    if (!compressed || c->yarn_factor == 1.0)
        return;

    double original = (double)c->yarn_original_positions;
    double low = floor(correction_dim(c->yarn_beta_fast, r, base, original));
    double high = ceil(correction_dim(c->yarn_beta_slow, r, base, original));
    if (low < 0)
        low = 0;
    if (high > r - 1)
        high = r - 1;
    if (low == high)
        high += 0.001; /* a ramp of no width would divide by zero */
    for (int k = 0; k < r / 2; k++) {
        double ramp = ((double)k - low) / (high - low);
        float mix = (float)(ramp < 0 ? 0 : ramp > 1 ? 1 : ramp);
        /* mix 1: slow dims, interpolated; mix 0: fast dims, left alone */
        float slow = inv_freq[k] / (float)c->yarn_factor;
        inv_freq[k] = slow * mix + inv_freq[k] * (1.0f - mix);
    }
}

void ref_rope_angles(const float *inv_freq, int half, const int64_t *positions, int64_t n,
                     float *cos_out, float *sin_out)
{
    for (int64_t i = 0; i < n; i++)
        for (int k = 0; k < half; k++) {
            /* The product is rounded to float32 first: at position 1e6 this is what the released
             * code computes, and a double-precision angle is visibly another one. */
            float angle = (float)positions[i] * inv_freq[k];
            cos_out[i * half + k] = (float)cos((double)angle);
            sin_out[i * half + k] = (float)sin((double)angle);
        }
}

void ref_rope(float *x, int64_t n, int heads, int d, int r, const float *cos_table,
              const float *sin_table, bool inverse)
{
    int half = r / 2;
    for (int64_t i = 0; i < n; i++)
        for (int h = 0; h < heads; h++) {
            float *tail = x + (i * heads + h) * d + (d - r);
            for (int k = 0; k < half; k++) {
                double c = (double)cos_table[i * half + k];
                double s = (double)sin_table[i * half + k];
                double a = (double)tail[2 * k], b = (double)tail[2 * k + 1];
                if (inverse)
                    s = -s;
                tail[2 * k] = (float)(a * c - b * s);
                tail[2 * k + 1] = (float)(a * s + b * c);
            }
        }
}
