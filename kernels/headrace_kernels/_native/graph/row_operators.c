/* RowLinear and RowFeedForward: rows are quantized, then products are cut by outputs, so that each thread reads its own
 * weights. */
#include "run.h"

#include <string.h>

#define MAX_TASKS 16

/* Reads weights[outputs / 16, width / 4, 16, 4] and scales[outputs] of inputs `index` and `index` + 1. */
static OrtStatus *read_weights(OrtApi *api, OrtKernelContext *context, size_t index, ptrdiff_t width, tensor *weights,
                               tensor *scales) {
    OrtStatus *status = hr_read_input(api, context, index, weights);
    if (!status) status = hr_read_input(api, context, index + 1, scales);
    if (status) return status;
    const int64_t *shape = weights->dimensions;
    if (weights->rank != 4 || shape[2] != ROWS_BLOCK || shape[3] != 4 || scales->rank != 1)
        return hr_fault(api, "weights are not in blocks of 16 outputs");
    if (width < 32 || width % 32 || shape[1] * 4 != width || shape[0] * ROWS_BLOCK != scales->dimensions[0])
        return hr_fault(api, "weights, scales and rows are not of one width, a multiple of 32");
    return NULL;
}

/* Rows and their quantization */

typedef struct {
    const hr_row_kernels *kernels;
    OrtApi *api;
    OrtKernelContext *context;
    ptrdiff_t count;
} work;

typedef struct {
    const work *of;
    const float *x;
    int8_t *codes;
    float *scales;
    ptrdiff_t width, stride;
} quantizing;

static ptrdiff_t stride_of(ptrdiff_t width) { return (width + 63) & ~(ptrdiff_t)63; }

static ptrdiff_t padded(ptrdiff_t count) { return (count + 15) & ~(ptrdiff_t)15; }

/* What `quantize` takes of the memory; a multiple of 64. */
static size_t size_of_rows(ptrdiff_t count, ptrdiff_t width) {
    return (size_t)(padded(count) * (stride_of(width) + (ptrdiff_t)sizeof(float)));
}

static void quantize_part(void *data, size_t task) {
    const quantizing *part = data;
    const ptrdiff_t first = (ptrdiff_t)task * ROWS_A_TASK, left = part->of->count - first;
    part->of->kernels->quantize(part->x + first * part->width, left < ROWS_A_TASK ? left : ROWS_A_TASK, part->width,
                                part->codes + first * part->stride, part->stride, part->scales + first);
}

static OrtStatus *quantize(const work *of, const float *x, ptrdiff_t width, int8_t *at, hr_rows *out) {
    const ptrdiff_t stride = stride_of(width), rows = padded(of->count);
    quantizing part = {of, x, at, (float *)(at + rows * stride), width, stride};
    *out = (hr_rows){part.codes, part.scales, of->count, width, stride};
    memset(part.codes + of->count * stride, 0, (size_t)((rows - of->count) * stride));
    const size_t tasks = (size_t)((of->count + ROWS_A_TASK - 1) / ROWS_A_TASK);
    if (tasks > 1) return ORT_CALL(of->api, KernelContext_ParallelFor)(of->context, quantize_part, tasks, 0, &part);
    quantize_part(&part, 0);
    return NULL;
}

/* Products */

typedef struct {
    void (*run)(const hr_rows *, const int8_t *, const float *, ptrdiff_t, ptrdiff_t, float *, ptrdiff_t);
    const hr_rows *rows;
    const int8_t *weights;
    const float *scales;
    ptrdiff_t count, grain, out_stride; /* blocks, or pairs of blocks */
    float *out;
} product;

static void product_part(void *data, size_t task) {
    const product *of = data;
    const ptrdiff_t first = (ptrdiff_t)task * of->grain, last = first + of->grain;
    of->run(of->rows, of->weights, of->scales, first, last < of->count ? last : of->count, of->out, of->out_stride);
}

/* `unit`: how many the kernels take at once. */
static OrtStatus *multiply(const work *of, product *product, ptrdiff_t unit) {
    const ptrdiff_t least = (product->count + MAX_TASKS - 1) / MAX_TASKS;
    product->grain = (least + unit - 1) / unit * unit;
    const size_t tasks = (size_t)((product->count + product->grain - 1) / product->grain);
    return ORT_CALL(of->api, KernelContext_ParallelFor)(of->context, product_part, tasks, 0, product);
}

static OrtStatus *begin(const kernel *self, OrtKernelContext *context, tensor *x, work *out) {
    OrtStatus *status = hr_read_input(self->api, context, 0, x);
    if (status) return status;
    if (x->rank < 1) return hr_fault(self->api, "rows are wanted, not a number");
    *out = (work){self->rows, self->api, context, 1};
    for (size_t axis = 0; axis + 1 < x->rank; ++axis) out->count *= (ptrdiff_t)x->dimensions[axis];
    return NULL;
}

OrtStatus *hr_row_linear(void *data, OrtKernelContext *context) {
    const kernel *self = data;
    tensor x, weights, scales;
    work of;
    hr_rows rows;
    float *out;
    OrtStatus *status = begin(self, context, &x, &of);
    if (status) return status;
    const ptrdiff_t width = (ptrdiff_t)x.dimensions[x.rank - 1];
    status = read_weights(self->api, context, 1, width, &weights, &scales);
    if (!status) status = hr_make_output(self->api, context, 0, &x, scales.dimensions[0], &out);
    if (status || !of.count) return status;
    int8_t *at = hr_memory_of(OF_OPERATOR, size_of_rows(of.count, width));
    if (!at) return hr_fault(self->api, "memory is exhausted");
    status = quantize(&of, x.data, width, at, &rows);
    if (status) return status;
    product of_rows = {self->rows->linear, &rows, weights.data, scales.data, weights.dimensions[0], 0,
                       scales.dimensions[0], out};
    return multiply(&of, &of_rows, 4);
}

OrtStatus *hr_row_feed_forward(void *data, OrtKernelContext *context) {
    const kernel *self = data;
    tensor x, opening, opening_scales, down, down_scales;
    work of;
    hr_rows rows;
    float *out;
    OrtStatus *status = begin(self, context, &x, &of);
    if (status) return status;
    const ptrdiff_t width = (ptrdiff_t)x.dimensions[x.rank - 1];
    status = read_weights(self->api, context, 1, width, &opening, &opening_scales);
    if (status) return status;
    if (opening.dimensions[0] % 2) return hr_fault(self->api, "blocks of gate and up do not come in pairs");
    const ptrdiff_t wide = (ptrdiff_t)opening_scales.dimensions[0] / 2;
    status = read_weights(self->api, context, 3, wide, &down, &down_scales);
    if (!status) status = hr_make_output(self->api, context, 0, &x, down_scales.dimensions[0], &out);
    if (status || !of.count) return status;
    const size_t inner_size = (size_t)(padded(of.count) * wide) * sizeof(float);
    const size_t first_size = size_of_rows(of.count, width), second_size = size_of_rows(of.count, wide);
    int8_t *at = hr_memory_of(OF_OPERATOR, inner_size + (first_size > second_size ? first_size : second_size));
    if (!at) return hr_fault(self->api, "memory is exhausted");
    float *inner = (float *)at;
    status = quantize(&of, x.data, width, at + inner_size, &rows);
    if (status) return status;
    product opened = {self->rows->gated, &rows, opening.data, opening_scales.data, opening.dimensions[0] / 2, 0, wide,
                      inner};
    status = multiply(&of, &opened, 2);
    if (!status) status = quantize(&of, inner, wide, at + inner_size, &rows);
    if (status) return status;
    product closed = {self->rows->linear, &rows, down.data, down_scales.data, down.dimensions[0], 0,
                      down_scales.dimensions[0], out};
    return multiply(&of, &closed, 4);
}
