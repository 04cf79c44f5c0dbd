#ifndef LLAMACHAT_MIXTURE_H
#define LLAMACHAT_MIXTURE_H
#include "engine.h"

#pragma GCC visibility push(hidden)
/* In a layer that is a mixture: the experts that each token goes to, and, of a batch, what is theirs gathered. */
void route(const Task *t, const Layer *l);
/* act(gate) * up of every row of the experts that were picked [rows][expert_inner]. */
void gate_up_experts(const Task *t, const Layer *l);
/* Down projections, added up by their shares: out [tokens][hidden]. */
void project_down_experts(const Task *t, const Layer *l);
#pragma GCC visibility pop
#endif
