#ifndef LLAMACHAT_THREADS_H
#define LLAMACHAT_THREADS_H
#include "engine.h"

#pragma GCC visibility push(hidden)
/* A barrier before a product of so many strips in all, whose first matrix is `next`. Who waits fetches its share of that matrix
   where a step is one token; with more tokens, weights are read seldom enough. */
void barrier_before(const Task *t, const Matrix *next, int strips);
void barrier(const Task *t);
/* A barrier after work on tokens that were dealt out; none where each thread works on a copy of the one token. */
void barrier_unless_alone(const Task *t);

/* Takes the next part [lo, hi) of the work since the last barrier, *hi being 0 at first; 0 when all is taken. Strips come in
   multiples of two, of a few tokens of four, and a share of them is each thread's own, which is the one that barrier_before
   fetched. */
int take_strips(const Task *t, int total, int *lo, int *hi);
int take_units(const Task *t, int total, int *lo, int *hi);

/* How many threads should run a step of so many tokens, which begins now; and that it has ended. */
int threads_of(Engine *e, int tokens);
void step_ended(Engine *e, int tokens);
#pragma GCC visibility pop
#endif
