/* What the operators share when they run: inputs and outputs of the runtime, and memory. */
#ifndef HEADRACE_RUN_H
#define HEADRACE_RUN_H

#include "onnxruntime_abi.h"
#include "rows.h"

#define MAX_RANK 8
#define ROWS_A_TASK 32

typedef struct {
    OrtApi *api;
    const hr_row_kernels *rows;
} kernel;

typedef struct {
    const void *data;
    int64_t dimensions[MAX_RANK];
    size_t rank;
} tensor;

OrtStatus *hr_fault(OrtApi *api, const char *message);
OrtStatus *hr_read_input(OrtApi *api, OrtKernelContext *context, size_t index, tensor *out);
/* An output of the shape of `like`, but for its last dimension. */
OrtStatus *hr_make_output(OrtApi *api, OrtKernelContext *context, size_t index, const tensor *like, int64_t last,
                          float **out);

/* Memory of the calling thread, kept for its next call: a run asks a hundred times for the same few hundred KB. An
 * operator has one piece, and each of its tasks another, as some run on the operator's own thread. NULL: there is no
 * more. */
enum { OF_OPERATOR, OF_TASK, NUM_MEMORIES };
void *hr_memory_of(int whose, size_t size);

/* The operators; `self` is a kernel. */
OrtStatus *hr_row_linear(void *self, OrtKernelContext *context);
OrtStatus *hr_row_feed_forward(void *self, OrtKernelContext *context);
OrtStatus *hr_cached_attention(void *self, OrtKernelContext *context);

#endif
