#define _GNU_SOURCE
#include "run.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static pthread_key_t memory_key;
static pthread_once_t memory_once = PTHREAD_ONCE_INIT;

typedef struct {
    void *bytes;
    size_t size;
} memory;

static void free_memory(void *kept) {
    for (int i = 0; i < NUM_MEMORIES; ++i) free(((memory *)kept)[i].bytes);
    free(kept);
}

static void make_key(void) { pthread_key_create(&memory_key, free_memory); }

void *hr_memory_of(int whose, size_t size) {
    pthread_once(&memory_once, make_key);
    memory *kept = pthread_getspecific(memory_key);
    if (!kept) {
        if (!(kept = calloc(NUM_MEMORIES, sizeof *kept)) || pthread_setspecific(memory_key, kept)) {
            free(kept);
            return NULL;
        }
    }
    kept += whose;
    if (kept->size < size) {
        free(kept->bytes);
        kept->size = 0;
        if (posix_memalign(&kept->bytes, 64, size)) {
            kept->bytes = NULL;
            return NULL;
        }
        kept->size = size;
    }
    return kept->bytes;
}

OrtStatus *hr_fault(OrtApi *api, const char *message) {
    return ORT_CALL(api, CreateStatus)(ORT_INVALID_ARGUMENT, message);
}

OrtStatus *hr_read_input(OrtApi *api, OrtKernelContext *context, size_t index, tensor *out) {
    const OrtValue *value;
    OrtShape *shape;
    OrtStatus *status = ORT_CALL(api, KernelContext_GetInput)(context, index, &value);
    if (!status) status = ORT_CALL(api, GetTensorMutableData)((OrtValue *)value, (void **)&out->data);
    if (!status) status = ORT_CALL(api, GetTensorTypeAndShape)(value, &shape);
    if (status) return status;
    status = ORT_CALL(api, GetDimensionsCount)(shape, &out->rank);
    if (!status && out->rank > MAX_RANK) status = hr_fault(api, "an input has too many dimensions");
    if (!status) status = ORT_CALL(api, GetDimensions)(shape, out->dimensions, out->rank);
    ORT_CALL(api, ReleaseTensorTypeAndShapeInfo)(shape);
    return status;
}

OrtStatus *hr_make_output(OrtApi *api, OrtKernelContext *context, size_t index, const tensor *like, int64_t last,
                          float **out) {
    int64_t dimensions[MAX_RANK];
    OrtValue *value;
    memcpy(dimensions, like->dimensions, sizeof dimensions);
    dimensions[like->rank - 1] = last;
    OrtStatus *status = ORT_CALL(api, KernelContext_GetOutput)(context, index, dimensions, like->rank, &value);
    return status ? status : ORT_CALL(api, GetTensorMutableData)(value, (void **)out);
}
