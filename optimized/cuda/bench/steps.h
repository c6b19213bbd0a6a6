/* steps.h - a decode step taken apart. */
#ifndef DSV4_CUDA_STEPS_H
#define DSV4_CUDA_STEPS_H

#include "../session.h"

/* Prints which kernels a decode step launches and what each costs: the step is recorded anew
 * without an operator's launches, and replayed; what it then takes less is what they cost where
 * they stand, beside the work that they overlap with. The session must have decoded a token; its
 * state is worth nothing afterwards. A whole step's seconds go to *step. */
dsv4_status bench_steps(dsv4_cuda_session *s, double *step, dsv4_error *err);

#endif
