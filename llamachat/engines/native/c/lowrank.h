#ifndef LLAMACHAT_LOWRANK_H
#define LLAMACHAT_LOWRANK_H
#include "engine.h"

#pragma GCC visibility push(hidden)
/* Before products of the same activations: a x of what is added to them (see LowRank), shared out among the threads, and a
   barrier before the product of `strips` strips in all. Nothing where nothing is added to any. */
void start_added(const Task *t, const Acts *a, const Product *products, int count, int strips);
/* The same of one product as the `part`-th of several, without the barrier: returns whether one is needed. `turn` is 0 at
   first. */
int sum_added(const Task *t, const Acts *a, const Product *p, int part, int *turn);
/* After these strips of the `part`-th product have been computed, by the same thread: y += scale * b (a x). */
void add_added(const Task *t, const Product *p, int part, int strip, int strips);
/* To a row of the embedding, x [hidden up to 64]. */
void add_to_row(const Engine *e, int row, float *x);
#pragma GCC visibility pop
#endif
