/* rope.cu - angles and rotations. */
#include "rows.cuh"

static __global__ void rope_angles(const float *inv_freq, int half, const int64_t *positions,
                                   const int64_t *pos0, int64_t n, float *cosine, float *sine)
{
    begin();
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n * half)
        return;
    int64_t i = at / half, position = pos0 != NULL ? *pos0 + i : positions[i];
    angle_of(position, inv_freq[at % half], cosine + at, sine + at);
}

extern "C" void cu_rope_angles(cu_stream s, const float *inv_freq, int half,
                               const int64_t *positions, const int64_t *pos0, int64_t n,
                               float *cosine, float *sine)
{
    if (n > 0 && half > 0)
        LAUNCH("rope_angles", n * half, rope_angles, cu_blocks(n * half, 64), 64, 0, s, inv_freq,
               half, positions, pos0, n, cosine, sine);
}

static __global__ void rope(float *x, int64_t n, int heads, int d, int r, const float *cosine,
                            const float *sine, bool inverse, bool bf16)
{
    begin();
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    int pairs = bf16 ? d / 2 + d % 2 : r / 2; /* rounding visits the rest of the row too */
    if (at >= n * heads * pairs)
        return;
    int64_t head = at / pairs, token = head / heads;
    int pair = (int)(at % pairs), first = bf16 ? (d - r) / 2 : 0;
    float *row = x + head * d;
    if (pair < first) {
        row[2 * pair] = cu_round_to_bf16(row[2 * pair]);
        row[2 * pair + 1] = cu_round_to_bf16(row[2 * pair + 1]);
        return;
    }
    int k = pair - first;
    float c = cosine[token * (r / 2) + k], t = sine[token * (r / 2) + k];
    float *tail = row + (d - r) + 2 * k, a = tail[0], b = tail[1];
    if (inverse && !MUTANT(3)) /* the inverse turns forward */
        t = -t;
    float2 turned = rotate(a, b, c, t, bf16);
    tail[0] = turned.x;
    tail[1] = turned.y;
}

/* bf16 needs an even d; r always is. */
extern "C" void cu_rope(cu_stream s, float *x, int64_t n, int heads, int d, int r,
                        const float *cosine, const float *sine, bool inverse, bool bf16)
{
    int64_t work = n * heads * (bf16 ? d / 2 + d % 2 : r / 2);
    if (work > 0)
        LAUNCH("rope", n * heads * d, rope, cu_blocks(work, 256), 256, 0, s, x, n, heads, d, r,
               cosine, sine, inverse, bf16);
}
