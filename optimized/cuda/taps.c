/* taps.c - what a listener hears of a session on the device: rows are copied out when somebody
 * wants them, and copied back if they were changed. */
#include <string.h>

#include "session.h"

bool cu_wants(const dsv4_cuda_session *s, dsv4_tap_id id, int layer, int64_t position)
{
    const dsv4_taps *t = s->taps;
    return t != NULL && t->tap != NULL && (t->want == NULL || t->want(t->ctx, id, layer, position));
}

bool cu_hears(const dsv4_cuda_session *s, dsv4_tap_id id, int layer, int64_t pos0, int64_t n)
{
    if (s->taps == NULL || (layer < 0 && id < DSV4_TAP_HEAD_COLLAPSED))
        return false;
    for (int64_t i = 0; i < n; i++)
        if (cu_wants(s, id, layer, pos0 + i))
            return true;
    return false;
}

bool cu_tap(dsv4_cuda_session *s, dsv4_tap_id id, int layer, int64_t pos0, int64_t n, void *data,
            int64_t width, int64_t ld)
{
    bool changed = false;
    if (s->taps == NULL || (layer < 0 && id < DSV4_TAP_HEAD_COLLAPSED))
        return false;
    for (int64_t i = 0; i < n; i++) {
        size_t bytes = (size_t)width * 4;
        uint8_t *row = (uint8_t *)data + (size_t)(i * ld) * 4;
        if (!cu_wants(s, id, layer, pos0 + i))
            continue;
        if (bytes > s->tap_bytes) {
            cu_book(dsv4_tap_name(id), width, "a tap larger than its room");
            return changed;
        }
        if (bytes > 0 && !cu_to_host(s->stream, s->tap_host, row, bytes, dsv4_tap_name(id)))
            return changed;
        memcpy(s->tap_copy, s->tap_host, bytes);
        s->taps->tap(s->taps->ctx, id, layer, pos0 + i, s->tap_host, (size_t)width);
        if (memcmp(s->tap_copy, s->tap_host, bytes) != 0) {
            changed = true;
            if (!cu_to_device(s->stream, row, s->tap_host, bytes, dsv4_tap_name(id)) ||
                !cu_wait(s->stream, dsv4_tap_name(id)))
                return changed;
        }
    }
    return changed;
}

bool cu_hears_rounding(const dsv4_cuda_session *s, int layer)
{
    return layer >= 0 && s->taps != NULL && s->taps->rounded != NULL &&
           s->options.numerics != DSV4_MATH;
}

void cu_tap_rounded(dsv4_cuda_session *s, dsv4_tap_id id, int layer, int64_t pos0, int64_t n,
                    dsv4_rounding kind, int block, const float *before, int64_t ld_before,
                    const float *after, int64_t ld_after, int64_t width)
{
    size_t bytes = (size_t)width * sizeof *before;
    if (!cu_hears_rounding(s, layer))
        return;
    for (int64_t i = 0; i < n; i++) {
        float *one = (float *)(void *)s->tap_copy, *two = (float *)(void *)s->tap_host;
        if (!cu_to_host(s->stream, one, before + i * ld_before, bytes, dsv4_tap_name(id)) ||
            !cu_to_host(s->stream, two, after + i * ld_after, bytes, dsv4_tap_name(id)))
            return;
        s->taps->rounded(s->taps->ctx, id, layer, pos0 + i, kind, block, one, two, (size_t)width);
    }
}
