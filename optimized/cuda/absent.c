/* absent.c - what a build without CUDA says. */
#include "optimized/optimized.h"

static dsv4_status absent(dsv4_error *err)
{
    return dsv4_fail(err, DSV4_E_INPUT,
                     "cuda: this build has no CUDA (no nvcc was found, or -DDSV4_CUDA=OFF)");
}

dsv4_status dsv4_cuda_probe(char *name, size_t size, dsv4_error *err)
{
    (void)name;
    (void)size;
    return absent(err);
}

const dsv4_ops *dsv4_ops_cuda(void)
{
    return NULL;
}

dsv4_status dsv4_cuda_take_error(dsv4_error *err)
{
    (void)err;
    return DSV4_OK;
}

void dsv4_cuda_check_calls(bool on)
{
    (void)on;
}

const char *dsv4_cuda_composition(int which)
{
    (void)which;
    return NULL;
}

dsv4_status dsv4_cuda_check_composition(int which, uint64_t seed,
                                        const dsv4_composition_cases *cases, dsv4_error *err)
{
    (void)which;
    (void)seed;
    (void)cases;
    return absent(err);
}

dsv4_status dsv4_cuda_open(const dsv4_model *m, dsv4_cuda **out, dsv4_error *err)
{
    (void)m;
    *out = NULL;
    return absent(err);
}

void dsv4_cuda_close(dsv4_cuda *d)
{
    (void)d;
}

size_t dsv4_cuda_weight_bytes(const dsv4_cuda *d)
{
    (void)d;
    return 0;
}

/* No engine was opened, so no session reaches the functions below. */

dsv4_status dsv4_cuda_session_new(dsv4_cuda *d, const dsv4_session_options *options,
                                  dsv4_cuda_session **out, dsv4_error *err)
{
    (void)d;
    (void)options;
    *out = NULL;
    return absent(err);
}

void dsv4_cuda_session_free(dsv4_cuda_session *s)
{
    (void)s;
}

void dsv4_cuda_session_set_taps(dsv4_cuda_session *s, const dsv4_taps *taps)
{
    (void)s;
    (void)taps;
}

dsv4_status dsv4_cuda_session_append(dsv4_cuda_session *s, const int32_t *tokens, int64_t n,
                                     float *logits, dsv4_error *err)
{
    (void)s;
    (void)tokens;
    (void)n;
    (void)logits;
    return absent(err);
}

int64_t dsv4_cuda_session_position(const dsv4_cuda_session *s)
{
    (void)s;
    return 0;
}

void dsv4_cuda_session_reset(dsv4_cuda_session *s)
{
    (void)s;
}

dsv4_status dsv4_cuda_session_save(const dsv4_cuda_session *s, void **blob, size_t *bytes,
                                   dsv4_error *err)
{
    (void)s;
    *blob = NULL;
    *bytes = 0;
    return absent(err);
}

dsv4_status dsv4_cuda_session_restore(dsv4_cuda_session *s, const void *blob, size_t bytes,
                                      dsv4_error *err)
{
    (void)s;
    (void)blob;
    (void)bytes;
    return absent(err);
}

dsv4_status dsv4_cuda_batch_new(dsv4_cuda_session *const *sessions, int count,
                                dsv4_cuda_batch **out, dsv4_error *err)
{
    (void)sessions;
    (void)count;
    *out = NULL;
    return absent(err);
}

void dsv4_cuda_batch_free(dsv4_cuda_batch *b)
{
    (void)b;
}

dsv4_status dsv4_cuda_batch_append(dsv4_cuda_batch *b, const int32_t *tokens, float *logits,
                                   dsv4_error *err)
{
    (void)b;
    (void)tokens;
    (void)logits;
    return absent(err);
}
