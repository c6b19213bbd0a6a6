/* steps.c - what a decode step is made of: launches by name, and what each name costs. */
#include "steps.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 15, REPLAYS = 8 };

static int rising(const void *a, const void *b)
{
    float x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

static bool record(dsv4_cuda_session *s)
{
    const int32_t token = 0;
    cu_graph_free(s->graph);
    s->graph = NULL;
    if (!cu_graph_begin(s))
        return false;
    cu_begin(s, &token, 1);
    cu_forward(s, 1, true);
    return cu_graph_end(s);
}

/* Median microseconds of a replayed step, without the launches of a name (NULL: with all). */
static bool time_without(dsv4_cuda_session *s, const char *name, double *us)
{
    float ms[ROUNDS];
    cudaEvent_t a = NULL, b = NULL;
    cu_leave_out(name);
    bool ok = record(s) && cu_ok(cudaEventCreate(&a), "timing", 0) &&
              cu_ok(cudaEventCreate(&b), "timing", 0);
    cu_leave_out(NULL);
    for (int r = 0; r < ROUNDS && ok; r++) {
        ok = cu_graph_launch(s) && cu_ok(cudaEventRecord(a, s->stream), "timing", 0);
        for (int i = 0; i < REPLAYS && ok; i++)
            ok = cu_graph_launch(s);
        ok = ok && cu_ok(cudaEventRecord(b, s->stream), "timing", 0) &&
             cu_ok(cudaEventSynchronize(b), "timing", 0) &&
             cu_ok(cudaEventElapsedTime(&ms[r], a, b), "timing", 0);
    }
    if (a != NULL)
        cudaEventDestroy(a);
    if (b != NULL)
        cudaEventDestroy(b);
    if (!ok)
        return false;
    qsort(ms, ROUNDS, sizeof *ms, rising);
    *us = 1e3 * (double)ms[ROUNDS / 2] / REPLAYS;
    return true;
}

dsv4_status bench_steps(dsv4_cuda_session *s, double *step, dsv4_error *err)
{
    const cu_launch_count *list;
    cu_launch_count found[CU_MOST_COUNTED];
    double all = 0, rest = 0, without = 0;
    int launches = 0, programmatic = 0, layers = s->d->model->config.num_hidden_layers;
    /* Where no window ends: that happens every fourth step, or every 128th. */
    int32_t token = 0;
    while (s->position % 4 != 2) {
        dsv4_status status = dsv4_cuda_session_append(s, &token, 1, NULL, err);
        if (status != DSV4_OK)
            return status;
    }
    cu_count_launches(true);
    bool ok = record(s);
    cu_count_launches(false);
    int n = cu_counted(&list);
    memcpy(found, list, sizeof found);
    for (int i = 0; i < n; i++)
        launches += found[i].launches;
    ok = ok && time_without(s, NULL, &all) && time_without(s, "product*", &rest);
    int edges = ok ? cu_graph_edges(s->graph, &programmatic) : 0;
    ok = ok && record(s);
    edges = ok ? cu_graph_edges(s->graph, &programmatic) : edges;
    if (ok)
        printf("a step on the device: %.1f us, %d launches, %d edges between them of which %d let "
               "kernels overlap; without its products %.1f us (%.1f us a layer)\n"
               "  %-36s %8s %10s %12s\n",
               all, launches, edges, programmatic, rest, rest / layers, "operator", "launches",
               "us", "us a launch");
    for (int i = 0; i < n && ok; i++) {
        ok = time_without(s, found[i].name, &without);
        if (ok)
            printf("  %-36s %8d %10.1f %12.2f\n", found[i].name, found[i].launches, all - without,
                   (all - without) / found[i].launches);
    }
    cu_graph_free(s->graph);
    s->graph = NULL;
    *step = 1e-6 * all;
    return cu_take_error(err);
}
