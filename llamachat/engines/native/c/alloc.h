#ifndef LLAMACHAT_ALLOC_H
#define LLAMACHAT_ALLOC_H
#include "engine.h"

#define NO_MEMORY "no memory"  /* what a function reports that got none; abi.py knows it */

/* What an engine holds besides keys and values is claimed piece by piece: of `from`, which must have room for all, or else each
   is allocated by itself; or they are only counted, to know what they will be. */
typedef struct { size_t bytes; int counting, failed; char *from; } Claims;

#pragma GCC visibility push(hidden)
/* Zeros, 64-byte aligned; NULL where counting, or where there is no memory. */
void *claim(Claims *c, size_t bytes);
/* Activations of so many tokens; width is a multiple of 64. */
Acts claim_acts(Claims *c, int tokens, int width);
void free_acts(Acts *a);
/* For the mask of a step: so many texts, which see so many chunks of slots in all. Returns 0 where there is no memory. */
int make_room(Engine *e, size_t texts, size_t chunks);
#pragma GCC visibility pop
#endif
