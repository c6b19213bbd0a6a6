/* compositions.h - a case of a composition: its buffers, twice. Private to compositions*.c. */
#ifndef DSV4_CUDA_COMPOSITIONS_H
#define DSV4_CUDA_COMPOSITIONS_H

#include "device.h"
#include "optimized/optimized.h"

enum { MOST_PIECES = 64, SIDES = 2, KV_BLOCK = 64, INDEX_BLOCK = 32 };

/* What the inputs look like. BF16 in deployed numerics, as an engine's are. */
typedef enum { NOISE, ZERO, SUBNORMAL, HUGE_VALUES, OUTLIER, TIES, NONFINITE, FILLS } fill;

typedef struct {
    const char *name;
    size_t at, bytes;
    bool aside, ints; /* aside: the sides may differ, as in what only one of them needs */
    float relative;   /* 0: the same bits; else: they may differ by this share of a value */
} piece;

typedef struct {
    const dsv4_composition_cases *cases;
    uint64_t seed, noise;
    fill fill;
    dsv4_numerics numerics;
    piece pieces[MOST_PIECES];
    int n;
    size_t bytes, capacity;
    uint8_t *image[SIDES], *back[SIDES], *device[SIDES];
    cu_stream stream;
    char name[160], wrong[200];
} bed;

#define EACH_KIND(b)                                                                               \
    for ((b)->numerics = DSV4_MATH; (b)->numerics <= DSV4_DEPLOYED; (b)->numerics++)               \
        for ((b)->fill = NOISE; (b)->fill < FILLS; (b)->fill++)

/* Opens the case, if it is asked for. */
bool bed_wanted(bed *b, const char *text);

/* Pieces are known by numbers: n floats of input, hostile as the case has it; or never (weights,
 * angles); results, poisoned; what the sides may use as they please; zeroed words, to be filled. */
int bed_input(bed *b, const char *name, int64_t n);
int bed_plain(bed *b, const char *name, int64_t n);
int bed_result(bed *b, const char *name, int64_t n);
int bed_scratch(bed *b, const char *name, int64_t n);
void *bed_ints(bed *b, const char *name, size_t bytes, int *number); /* NULL: no room */

void *bed_at(const bed *b, int side, int number);    /* on the device */
void *bed_image(const bed *b, int side, int number); /* what goes there */
uint32_t bed_bits(bed *b);

/* together() on side 0, one_by_one() on side 1, then both are compared and the case is closed.
 * patch (or NULL) fills in what holds addresses of a side. */
typedef void bed_side(bed *b, void *ctx, int side);
void bed_run(bed *b, bed_side *together, bed_side *one_by_one, bed_side *patch, void *ctx);

/* compositions_attention.c */
void check_rows(bed *b);
void check_queries(bed *b);
void check_scores(bed *b);
void check_attention(bed *b);
void check_raw_attention(bed *b);
/* compositions_mhc.c */
void check_swiglu(bed *b);
void check_leave(bed *b);
void check_enter(bed *b);
void check_begin(bed *b);
/* compositions_products.c */
void check_gated(bed *b);
void check_ahead(bed *b);

#endif
