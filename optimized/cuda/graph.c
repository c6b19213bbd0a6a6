/* graph.c - a decode step recorded as a CUDA graph, and page-locked memory. */
#include <cuda_runtime_api.h>
#include <stdlib.h>

#include "session.h"

struct cu_graph {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
};

bool cu_graph_begin(dsv4_cuda_session *s)
{
    return cu_ok(cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal),
                 "recording a decode step", 0);
}

bool cu_graph_end(dsv4_cuda_session *s)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    if (!cu_ok(cudaStreamEndCapture(s->stream, &graph), "recording a decode step", 0))
        return false;
    cu_graph *g = dsv4_alloc(1, sizeof *g, "a graph", NULL);
    if (g == NULL)
        cu_book("recording a decode step", 0, "out of memory");
    else if (cu_failed()) /* a launch that was refused is missing: never replayed */
        cu_book("recording a decode step", 0, "a launch failed");
    else
        (void)cu_ok(cudaGraphInstantiateWithFlags(&exec, graph, 0), "recording a decode step", 0);
    if (exec == NULL) {
        (void)cudaGraphDestroy(graph);
        free(g);
        return false;
    }
    *g = (cu_graph){graph, exec};
    s->graph = g;
    return true;
}

bool cu_graph_launch(dsv4_cuda_session *s)
{
    return cu_ok(cudaGraphLaunch(s->graph->exec, s->stream), "replaying a decode step", 0);
}

void cu_graph_free(cu_graph *g)
{
    if (g == NULL)
        return;
    cu_ok(cudaGraphExecDestroy(g->exec), "freeing a graph", 0);
    cu_ok(cudaGraphDestroy(g->graph), "freeing a graph", 0);
    free(g);
}

int cu_graph_edges(const cu_graph *g, int *programmatic)
{
    size_t n = 0;
    *programmatic = 0;
#if CUDART_VERSION >= 12030
#if CUDART_VERSION >= 13000
#define GET_EDGES cudaGraphGetEdges
#else
#define GET_EDGES cudaGraphGetEdges_v2
#endif
    if (GET_EDGES(g->graph, NULL, NULL, NULL, &n) != cudaSuccess || n == 0)
        return 0;
    cudaGraphNode_t *from = dsv4_alloc(n, sizeof *from, "edges", NULL);
    cudaGraphNode_t *to = dsv4_alloc(n, sizeof *to, "edges", NULL);
    cudaGraphEdgeData *data = dsv4_alloc(n, sizeof *data, "edges", NULL);
    if (from != NULL && to != NULL && data != NULL &&
        GET_EDGES(g->graph, from, to, data, &n) == cudaSuccess)
        for (size_t i = 0; i < n; i++)
            *programmatic += data[i].type == cudaGraphDependencyTypeProgrammatic;
    free(from);
    free(to);
    free(data);
#else
    (void)g;
#endif
    return (int)n;
}

/* ---- side by side --------------------------------------------------------------------------- */

static void *new_event(dsv4_error *err)
{
    cudaEvent_t e = NULL;
    if (cudaEventCreateWithFlags(&e, cudaEventDisableTiming) == cudaSuccess)
        return e;
    (void)cudaGetLastError();
    dsv4_fail(err, DSV4_E_MACHINE, "cuda: an event for a batch");
    return NULL;
}

bool cu_branches_new(dsv4_cuda_session *s, dsv4_error *err)
{
    cu_branches *b = &s->branches;
    bool ok = true;
    for (int i = 0; i < CU_BRANCHES && i < s->n_members && ok; i++) {
        b->stream[i] = cu_new_stream(err);
        b->done[i] = b->stream[i] != NULL ? new_event(err) : NULL;
        ok = b->done[i] != NULL;
    }
    if (ok && s->n_members > 0) {
        b->ready = new_event(err);
        ok = b->ready != NULL;
    }
    return ok;
}

void cu_branches_free(dsv4_cuda_session *s)
{
    cu_branches *b = &s->branches;
    for (int i = 0; i < CU_BRANCHES; i++) {
        cu_delete_stream(b->stream[i]);
        if (b->done[i] != NULL)
            cu_ok(cudaEventDestroy((cudaEvent_t)b->done[i]), "freeing an event", 0);
    }
    if (b->ready != NULL)
        cu_ok(cudaEventDestroy((cudaEvent_t)b->ready), "freeing an event", 0);
}

static int branches_of(const dsv4_cuda_session *s)
{
    return s->n_members < CU_BRANCHES ? s->n_members : CU_BRANCHES;
}

/* An event is no kernel: what follows it waits for all of what came before. */
void cu_fork(dsv4_cuda_session *s)
{
    cu_branches *b = &s->branches;
    if (s->n_members == 0)
        return;
    cu_keep_apart(true);
    cu_ok(cudaEventRecord((cudaEvent_t)b->ready, s->stream), "a batch", s->n_members);
    for (int i = 0; i < branches_of(s); i++)
        cu_ok(cudaStreamWaitEvent(b->stream[i], (cudaEvent_t)b->ready, 0), "a batch", s->n_members);
}

cu_stream cu_branch(const dsv4_cuda_session *s, int i)
{
    return s->branches.stream[i % CU_BRANCHES];
}

/* Whoever launches the next kernel ends cu_keep_apart after it. */
void cu_join(dsv4_cuda_session *s)
{
    cu_branches *b = &s->branches;
    for (int i = 0; i < branches_of(s); i++) {
        cu_ok(cudaEventRecord((cudaEvent_t)b->done[i], b->stream[i]), "a batch", s->n_members);
        cu_ok(cudaStreamWaitEvent(s->stream, (cudaEvent_t)b->done[i], 0), "a batch", s->n_members);
    }
}

/* ---- page-locked memory --------------------------------------------------------------------- */

void *cu_pinned(size_t bytes, const char *what, dsv4_error *err)
{
    void *p = NULL;
    cudaError_t e = cudaMallocHost(&p, bytes);
    if (e == cudaSuccess)
        return p;
    (void)cudaGetLastError();
    dsv4_fail(err, DSV4_E_MACHINE, "cuda: %zu bytes of page-locked memory for %s: %s", bytes, what,
              cudaGetErrorString(e));
    return NULL;
}

void cu_unpin(void *p)
{
    if (p != NULL)
        cu_ok(cudaFreeHost(p), "freeing page-locked memory", 0);
}
