/* failures.h - a device without room, provoked. */
#ifndef DSV4_CUDA_FAILURES_H
#define DSV4_CUDA_FAILURES_H

#include "reference/dsv4.h"

/* Takes device memory until `leave` MB are free, says so on a line of its own, and keeps it until
 * the standard input ends. */
dsv4_status hold_memory(int64_t leave, dsv4_error *err);

/* Opens engine, sessions and a batch of the model where nothing is free: each must be refused in
 * one line with what was wanted and what was free, leave nothing behind, and work once there is
 * room. Prints a line a check; failed: how many were not met. */
dsv4_status provoke_failures(const char *model, int *failed, dsv4_error *err);

#endif
