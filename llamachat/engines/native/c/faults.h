#ifndef LLAMACHAT_FAULTS_H
#define LLAMACHAT_FAULTS_H
#include "model.h"

/* Why something cannot be what it is said to be, in words; NULL: it can. */
const char *matrix_fault(const Matrix *w);
const char *model_fault(const Model *m);
const char *weights_fault(const Model *m);
const char *low_ranks_fault(const Model *m);
const char *places_fault(int slots, const int64_t *slot, const int64_t *position, int count);
const char *step_fault(const Model *m, const Step *s);
#endif
