/* parts.cuh - float32 products on the tensor cores: a float is the sum of three bf16 parts, exactly
 * (8 + 8 + 8 bits), and of the nine products of parts the six largest are added; what is left out
 * is below 2^-25 of a product. Values that are bf16 already (those that came from bf16, FP8 or FP4)
 * are one part, and the products with the others, which are zero, are not made: that changes no
 * sum. Values that have no parts (infinities, NaN, 2^60 and more) are told, and their sums are
 * formed by fmaf. Private to the .cu files.
 *
 * Fragments are those of mma.m16n8k16: lane 4 g + t. The columns of a step of 16 are dealt so that
 * lane t holds columns 4 t .. 4 t + 3, one float4, on both sides: a sum does not mind. */
#ifndef DSV4_CUDA_PARTS_CUH
#define DSV4_CUDA_PARTS_CUH

#include <type_traits>

#include "device.cuh"

/* Two floats as bf16, the first one low. */
__device__ __forceinline__ uint32_t two_bf16(float low, float high)
{
    uint32_t v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}

__device__ __forceinline__ float low_of(uint32_t two)
{
    return __uint_as_float(two << 16);
}

__device__ __forceinline__ float high_of(uint32_t two)
{
    return __uint_as_float(two & 0xffff0000u);
}

/* The parts of two floats, largest first. */
__device__ __forceinline__ void split_two(float a, float b, uint32_t *p0, uint32_t *p1,
                                          uint32_t *p2)
{
    uint32_t high = two_bf16(a, b);
    a -= low_of(high);
    b -= high_of(high);
    uint32_t middle = two_bf16(a, b);
    a -= low_of(middle);
    b -= high_of(middle);
    *p0 = high;
    *p1 = middle;
    *p2 = __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x7632); /* exact: 7 bits are left */
}

/* A lane's columns of one row: [part][low, high pair]. */
typedef struct {
    uint32_t p[3][2];
} four_parts;

__device__ __forceinline__ four_parts split_four(float4 v)
{
    four_parts f;
    split_two(v.x, v.y, &f.p[0][0], &f.p[1][0], &f.p[2][0]);
    split_two(v.z, v.w, &f.p[0][1], &f.p[1][1], &f.p[2][1]);
    return f;
}

__device__ __forceinline__ float size_of_four(float4 v)
{
    return (fabsf(v.x) + fabsf(v.y)) + (fabsf(v.z) + fabsf(v.w));
}

/* Sizes up to here have parts; NaN is told as well. */
__device__ __forceinline__ bool has_parts(float size)
{
    return size < 0x1p60f;
}

/* The bits that values which are bf16 do not have. */
__device__ __forceinline__ uint32_t bits_below(float4 v)
{
    return ((__float_as_uint(v.x) | __float_as_uint(v.y)) |
            (__float_as_uint(v.z) | __float_as_uint(v.w))) &
           0xffffu;
}

/* d += a b: a [16][16] by row, b [16][8] by column. */
__device__ __forceinline__ void mma_bf16(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* The parts of a step's 16 x 16 values from a lane's two rows; only the first, of values that are
 * bf16, if not THREE. */
template <bool THREE>
__device__ __forceinline__ void split_rows(float4 row, float4 row8, uint32_t a[3][4])
{
    if (THREE) {
        four_parts x = split_four(row), y = split_four(row8);
#pragma unroll
        for (int p = 0; p < 3; p++) {
            a[p][0] = x.p[p][0];
            a[p][1] = y.p[p][0];
            a[p][2] = x.p[p][1];
            a[p][3] = y.p[p][1];
        }
    } else {
        a[0][0] = __byte_perm(__float_as_uint(row.x), __float_as_uint(row.y), 0x7632);
        a[0][1] = __byte_perm(__float_as_uint(row8.x), __float_as_uint(row8.y), 0x7632);
        a[0][2] = __byte_perm(__float_as_uint(row.z), __float_as_uint(row.w), 0x7632);
        a[0][3] = __byte_perm(__float_as_uint(row8.z), __float_as_uint(row8.w), 0x7632);
    }
}

/* Other factors as lanes keep them in shared memory: 16 bytes for the first two parts, 8 for the
 * third. */
typedef struct {
    uint4 two;
    uint2 third;
} b_parts;

/* sum += the products of a step, for several tiles of eight columns. The small products are added
 * up by themselves and joined by an ordinary addition: the tensor cores cut off when they add, and
 * the steps' small sums do not wait for each other. a3, b3: whether a side has three parts, or one.
 * Known when it is compiled, they make straight code; known to the warp, branches that keep the
 * tiles in turn. Which is faster was measured: attention takes the one, the indexer the other. */
template <int TILES>
__device__ __forceinline__ void mma_parts(float sum[TILES][4], const uint32_t a[3][4],
                                          const b_parts b[TILES], bool a3, bool b3)
{
    float rest[TILES][4] = {};
    if (a3)
#pragma unroll
        for (int n = 0; n < TILES; n++)
            mma_bf16(rest[n], a[2], b[n].two.x, b[n].two.y);
    if (b3)
#pragma unroll
        for (int n = 0; n < TILES; n++)
            mma_bf16(rest[n], a[0], b[n].third.x, b[n].third.y);
    if (a3 && b3)
#pragma unroll
        for (int n = 0; n < TILES; n++)
            mma_bf16(rest[n], a[1], b[n].two.z, b[n].two.w);
    if (a3)
#pragma unroll
        for (int n = 0; n < TILES; n++)
            mma_bf16(rest[n], a[1], b[n].two.x, b[n].two.y);
    if (b3 && !MUTANT(40)) /* the second part of one side forgotten */
#pragma unroll
        for (int n = 0; n < TILES; n++)
            mma_bf16(rest[n], a[0], b[n].two.z, b[n].two.w);
#pragma unroll
    for (int n = 0; n < TILES; n++)
        mma_bf16(sum[n], a[0], b[n].two.x, b[n].two.y);
    if (a3 || b3)
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                sum[n][e] += rest[n][e];
}

/* step(A, B) for the sides at hand, as types; one part times three is done as three times three. */
template <class STEP> __device__ __forceinline__ void by_parts(bool a, bool b, STEP step)
{
    if (a)
        step(std::true_type(), std::true_type());
    else if (b)
        step(std::false_type(), std::true_type());
    else
        step(std::false_type(), std::false_type());
}

/* Columns c .. c + 3 of a row of dim; from NULL: no row, zeros. quads: rows are aligned to 16. */
__device__ __forceinline__ float4 load_four(const float *from, int c, int dim, bool quads)
{
    if (from == NULL || c >= dim)
        return make_float4(0, 0, 0, 0);
    if (quads)
        return __ldcg((const float4 *)(const void *)(from + c));
    return make_float4(__ldcg(from + c), c + 1 < dim ? __ldcg(from + c + 1) : 0.0f,
                       c + 2 < dim ? __ldcg(from + c + 2) : 0.0f,
                       c + 3 < dim ? __ldcg(from + c + 3) : 0.0f);
}

/* Four floats, or zeros: a load that no branch keeps waiting for the one before. (PTX registers have
 * types: none of the outputs can be an input's.) */
__device__ __forceinline__ float4 load_there(const float *from, bool there)
{
    float4 v;
    asm volatile("{.reg .pred p;\n"
                 "setp.ne.u32 p, %5, 0;\n"
                 "mov.f32 %0, 0f00000000; mov.f32 %1, 0f00000000;\n"
                 "mov.f32 %2, 0f00000000; mov.f32 %3, 0f00000000;\n"
                 "@p ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];}"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(from), "r"(there ? 1 : 0)
                 : "memory");
    return v;
}

/* Four weights on their way into shared memory, or zeros. */
__device__ __forceinline__ void fetch_weights(float4 *to, const float *from, bool there)
{
    uint32_t at = copy_target(to);
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(at),
                 "l"(from), "r"(there ? 16 : 0), "l"(passing())
                 : "memory");
}

/* Four floats on their way into shared memory, or zeros. */
__device__ __forceinline__ void fetch_four(float4 *to, const float *from, bool there)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void fetched()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int LEFT> __device__ __forceinline__ void wait_fetched()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

#endif
