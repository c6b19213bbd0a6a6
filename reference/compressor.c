/* compressor.c - one compressed KV row from a window of tokens: a softmax over the window's slots,
 * channel by channel. Ratio 4 overlaps: each window also sees the one before it. */
#include <math.h>

#include "scalar.h"

void ref_compressor_pool(const float *prev_kv, const float *prev_z, const float *kv, const float *z,
                         int ratio, int lanes, int dim, float *c)
{
    int width = lanes * dim;
    /* With two lanes the first dim columns serve the NEXT window, the last dim columns this one. */
    int own = (lanes - 1) * dim;
    for (int k = 0; k < dim; k++) {
        double max = -INFINITY, sum = 0, weighted = 0;
        for (int t = 0; t < ratio; t++) {
            if (prev_kv != NULL)
                max = fmax(max, (double)prev_z[t * width + k]);
            max = fmax(max, (double)z[t * width + own + k]);
        }
        for (int t = 0; t < ratio; t++) {
            if (prev_kv != NULL) {
                double e = exp((double)prev_z[t * width + k] - max);
                sum += e;
                weighted += e * (double)prev_kv[t * width + k];
            }
            double e = exp((double)z[t * width + own + k] - max);
            sum += e;
            weighted += e * (double)kv[t * width + own + k];
        }
        c[k] = (float)(weighted / sum);
    }
}
