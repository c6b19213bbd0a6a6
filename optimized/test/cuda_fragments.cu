/* cuda_fragments.cu - the tensor cores' operands (mma.cuh), made on this CPU: put together as an
 * mma would, a row's codes and factors give the reference's weights; x's parts add up to x, and so
 * do its limbs as nearly as they must. Needs no GPU. */
#include <stdio.h>
#include <stdlib.h>

#include "optimized/cuda/ints.cuh"

static int failures;
static uint64_t state = 88172645463325252u;

static uint32_t noise()
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 24);
}

static cu_iq2_words words;
static uint64_t book[256];

/* Row after row of noise: decoded through the operands, and by cu_value. */
template <int TYPE> static void rows(const char *name)
{
    typedef row_shape<TYPE> S;
    enum { COLS = 512, BYTES = S::CHUNK_BYTES * COLS / CU_CHUNK, ROWS = 300 };
    alignas(16) static uint8_t data[BYTES];
    uint8_t scale[COLS / 32];
    cu_tensor w = {};
    w.type = TYPE;
    w.rows = 1;
    w.cols = COLS;
    w.row_bytes = BYTES;
    w.data = data;
    w.scale = scale;
    w.scale_rows = 1;
    w.scale_cols = TYPE == DSV4_FP8 ? 128 : 32;
    for (int r = 0; r < ROWS; r++) {
        for (int i = 0; i < BYTES; i++)
            data[i] = (uint8_t)noise();
        for (int i = 0; i < COLS / 32; i++)
            scale[i] = (uint8_t)noise();
        if (r % 2 == 0 && S::DEFERRED) /* exact comparison wants factors of one */
            for (int c = 0; c < COLS / CU_CHUNK; c++) {
                uint8_t *d = data + c * S::CHUNK_BYTES + (TYPE == DSV4_Q2_K ? 80 : 0);
                d[0] = 0, d[1] = 0x3c;
                if (S::MINIMA > 0)
                    d[2] = 0, d[3] = 0x3c;
            }
        for (int col = 0; col < COLS; col++) {
            int block = col / 32 % 8, t = col % 32 / 8, step = col % 8 / 4, i = col % 4;
            const uint8_t *chunk = data + col / CU_CHUNK * S::CHUNK_BYTES;
            row_codes<TYPE> codes;
            row_scale<TYPE> factor;
            uint32_t v[4], m[2];
            codes.load(chunk, block / codes.SPAN * codes.SPAN, t, &words);
            codes.expand(block % codes.SPAN, v);
            factor.load(chunk, scale + col / CU_CHUNK * CU_CHUNK / w.scale_cols);
            float code = cu_bf16(v[2 * step + i / 2] >> 16 * (i % 2) & 0xffffu);
            double got = (double)code * factor.block(block / S::BLOCKS);
            if constexpr (S::DEFERRED != 0)
                got *= factor.d;
            if constexpr (S::MINIMA > 0) {
                int j = col % CU_CHUNK / (CU_CHUNK / S::MINIMA);
                row_minima<TYPE>().load(chunk, j % 8 / 2, m);
                got -= (double)factor.dmin * cu_bf16(m[j / 8] >> 16 * (j % 2) & 0xffffu);
            }
            double want = cu_value(&w, 0, col, book);
            got = (double)(float)got;
            bool odd = !(fabs(want) < 1e300);
            /* two roundings of cu_value are not made here */
            double most = S::DEFERRED && r % 2 ? 3e-7 * (fabs(want) + fabs(got) + 40) : 0;
            if (S::MINIMA > 0 && r % 2)
                most = 1e-6 * 65504 * 4096;
            if (odd ? got == got && fabs(got) < 1e300 : !(fabs(got - want) <= most)) {
                if (failures++ < 10)
                    printf("%s row %d column %d: expected %.9g, found %.9g\n", name, r, col, want,
                           got);
            }
        }
    }
}

static void parts()
{
    for (uint64_t b = 0; b < (uint64_t)1 << 32; b += 4093) {
        float x = cu_float_of((uint32_t)b);
        uint32_t part[CU_PARTS];
        cu_split(x, part);
        double sum = 0;
        for (int p = 0; p < CU_PARTS; p++) {
            sum += (double)cu_float_of(part[p]);
            if ((part[p] & 0xffffu) != 0)
                failures++;
        }
        double lost = fabs(sum - (double)x);
        if (x != x ? sum == sum : isinf(x) ? sum != (double)x : !(lost <= 0x1p-133)) {
            if (failures++ < 10)
                printf("parts of %.9g: %.17g\n", (double)x, sum);
        }
        if (fabs((double)x) >= 0x1p-109 && lost > 0)
            failures++;
    }
}

static void expect(bool right, const char *what, double value)
{
    if (!right && failures++ < 10)
        printf("%s: %.17g\n", what, value);
}

/* Fixed point of a chunk whose largest value is `most`: to nearest, and the digits are the
 * number's.
 */
static void limbs()
{
    for (uint64_t b = 0; b < (uint64_t)0x7f800000u; b += 40093) {
        uint32_t largest = (uint32_t)b;
        int n = cu_fixed_power(largest);
        double unit = ldexp(1.0, -n);
        expect((double)cu_two_to(-n) == unit, "the power of two of a chunk", unit);
        float x[4] = {cu_float_of(largest), -cu_float_of(largest),
                      cu_float_of(noise() % (largest + 1)), -cu_float_of(noise() % (largest + 1))};
        int32_t q[4];
        uint32_t u[4], w[LIMBS];
        for (int i = 0; i < 4; i++) {
            float scaled = n > 127 ? x[i] * 0x1p64f * cu_two_to(n - 64) : x[i] * cu_two_to(n);
            expect(fabsf(scaled) <= 0x1p30f, "a number for four limbs", (double)scaled);
            u[i] = cu_fixed(scaled);
            q[i] = (int32_t)(u[i] - 0x80808080u);
            expect((double)q[i] == rint(ldexp((double)x[i], n)), "a whole number", (double)x[i]);
            expect(fabs((double)q[i] * unit - (double)x[i]) <= unit / 2, "fixed point",
                   (double)x[i]);
        }
        cu_limbs(u, w);
        for (int i = 0; i < 4; i++) {
            int64_t sum = 0;
            for (int l = 0; l < LIMBS; l++)
                sum = 256 * sum + (int8_t)(w[l] >> 8 * i & 255u);
            expect(sum == q[i], "limbs", (double)q[i]);
        }
    }
}

/* Scales and minima of Q4_K, levels and signs of IQ2_XXS, codes of FP4, as whole numbers. */
static void whole_numbers()
{
    for (int r = 0; r < 1000; r++) {
        uint32_t header[4] = {noise(), noise(), noise(), noise()}, s[2];
        uint8_t bytes[12];
        memcpy(bytes, header + 1, sizeof bytes);
        cu_q4_k_scales(header, s);
        for (int j = 0; j < 8; j++) {
            uint32_t scale, min;
            cu_six_bits(bytes, j, &scale, &min);
            expect(cu_byte(s[j / 4], j % 4) == scale, "a scale of Q4_K", j);
            expect((cu_q4_k_minima(header, j / 4) >> 8 * (j % 4) & 255u) == min,
                   "a minimum of Q4_K", j);
        }
        expect(cu_q4_k_minima(header, 2) == 0 && cu_q4_k_minima(header, 3) == 0, "no minimum", r);
        uint32_t entry = noise() % 256, seven = noise() % 128, v[2], ones = 0;
        cu_iq2_codes(words.book[entry][0] ^ words.signs[seven][0], v);
        for (int i = 0; i < 7; i++)
            ones += seven >> i & 1u;
        for (int i = 0; i < 8; i++) {
            int level = (int)(book[entry] >> 8 * i & 255u);
            bool negative = i < 7 ? seven >> i & 1u : ones & 1u;
            expect((int8_t)(v[i / 4] >> 8 * (i % 4) & 255u) == (negative ? -level : level),
                   "a value of IQ2_XXS", i);
        }
        uint32_t nibbles = noise() ^ noise() << 8;
        cu_fp4_codes(nibbles, v);
        for (int i = 0; i < 8; i++)
            expect((int8_t)(v[i / 4] >> 8 * (i % 4) & 255u) == 4 * cu_e2m1(nibbles >> 4 * i & 15u),
                   "a value of FP4", i);
    }
}

int main()
{
    cu_iq2_xxs_book(book);
    cu_iq2_xxs_words(&words.book[0][0], CU_IQ2_COPIES, CU_IQ2_COPIES);
    rows<DSV4_BF16>("BF16");
    rows<DSV4_FP8>("FP8");
    rows<DSV4_FP4>("FP4");
    rows<DSV4_MXFP4>("MXFP4");
    rows<DSV4_Q8_0>("Q8_0");
    rows<DSV4_Q4_K>("Q4_K");
    rows<DSV4_Q2_K>("Q2_K");
    rows<DSV4_IQ2_XXS>("IQ2_XXS");
    parts();
    limbs();
    whole_numbers();
    printf("%d failures\n", failures);
    return failures > 0;
}
