/* Operators of ONNX Runtime for decoder graphs whose activations are quantized row by row; domain "headrace".
 *
 *     RowLinear(x, weights, scales) -> x times weights
 *     CachedAttention(qkv, past_key, past_value, seqlens_k, total_sequence_length, cosines, sines)
 *         -> attended, present_key, present_value
 *     RowFeedForward(x, gate_up, gate_up_scales, down, down_scales) -> (silu(x gate) * (x up)) down
 *
 * Weights and scales stand as rows.h says; of gate_up, blocks of gate and up alternate. Work is cut by outputs, so that
 * each thread of the session reads its own weights.
 */
#define _GNU_SOURCE
#include "operators.h"

#include "onnxruntime_abi.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_RANK 8
#define MAX_TASKS 16
#define ROWS_A_TASK 32

static const hr_row_kernels *chosen;

void hr_use_row_kernels(const hr_row_kernels *kernels) { chosen = kernels; }

/* Memory of the calling thread, kept for its next call: a run asks a hundred times for the same few hundred KB. An
 * operator has one piece, and each of its tasks another, as some run on the operator's own thread. */
enum { OF_OPERATOR, OF_TASK, NUM_MEMORIES };

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

static void *memory_of(int whose, size_t size) {
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

/* One kernel, one operator */

typedef struct {
    OrtApi *api;
    const hr_row_kernels *rows;
} kernel;

typedef struct {
    const void *data;
    int64_t dimensions[MAX_RANK];
    size_t rank;
} tensor;

static OrtStatus *fault(OrtApi *api, const char *message) {
    return ORT_CALL(api, CreateStatus)(ORT_INVALID_ARGUMENT, message);
}

static OrtStatus *read_input(OrtApi *api, OrtKernelContext *context, size_t index, tensor *out) {
    const OrtValue *value;
    OrtShape *shape;
    OrtStatus *status = ORT_CALL(api, KernelContext_GetInput)(context, index, &value);
    if (!status) status = ORT_CALL(api, GetTensorMutableData)((OrtValue *)value, (void **)&out->data);
    if (!status) status = ORT_CALL(api, GetTensorTypeAndShape)(value, &shape);
    if (status) return status;
    status = ORT_CALL(api, GetDimensionsCount)(shape, &out->rank);
    if (!status && out->rank > MAX_RANK) status = fault(api, "an input has too many dimensions");
    if (!status) status = ORT_CALL(api, GetDimensions)(shape, out->dimensions, out->rank);
    ORT_CALL(api, ReleaseTensorTypeAndShapeInfo)(shape);
    return status;
}

/* Reads weights[outputs / 16, width / 4, 16, 4] and scales[outputs] of inputs `index` and `index` + 1. */
static OrtStatus *read_weights(OrtApi *api, OrtKernelContext *context, size_t index, ptrdiff_t width, tensor *weights,
                               tensor *scales) {
    OrtStatus *status = read_input(api, context, index, weights);
    if (!status) status = read_input(api, context, index + 1, scales);
    if (status) return status;
    const int64_t *shape = weights->dimensions;
    if (weights->rank != 4 || shape[2] != ROWS_BLOCK || shape[3] != 4 || scales->rank != 1)
        return fault(api, "weights are not in blocks of 16 outputs");
    if (width < 32 || width % 32 || shape[1] * 4 != width || shape[0] * ROWS_BLOCK != scales->dimensions[0])
        return fault(api, "weights, scales and rows are not of one width, a multiple of 32");
    return NULL;
}

/* An output of the shape of `like`, but for its last dimension. */
static OrtStatus *make_output(OrtApi *api, OrtKernelContext *context, size_t index, const tensor *like, int64_t last,
                              float **out) {
    int64_t dimensions[MAX_RANK];
    OrtValue *value;
    memcpy(dimensions, like->dimensions, sizeof dimensions);
    dimensions[like->rank - 1] = last;
    OrtStatus *status = ORT_CALL(api, KernelContext_GetOutput)(context, index, dimensions, like->rank, &value);
    return status ? status : ORT_CALL(api, GetTensorMutableData)(value, (void **)out);
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
    OrtStatus *status = read_input(self->api, context, 0, x);
    if (status) return status;
    if (x->rank < 1) return fault(self->api, "rows are wanted, not a number");
    *out = (work){self->rows, self->api, context, 1};
    for (size_t axis = 0; axis + 1 < x->rank; ++axis) out->count *= (ptrdiff_t)x->dimensions[axis];
    return NULL;
}

static OrtStatus *row_linear(void *data, OrtKernelContext *context) {
    const kernel *self = data;
    tensor x, weights, scales;
    work of;
    hr_rows rows;
    float *out;
    OrtStatus *status = begin(self, context, &x, &of);
    if (status) return status;
    const ptrdiff_t width = (ptrdiff_t)x.dimensions[x.rank - 1];
    status = read_weights(self->api, context, 1, width, &weights, &scales);
    if (!status) status = make_output(self->api, context, 0, &x, scales.dimensions[0], &out);
    if (status || !of.count) return status;
    int8_t *at = memory_of(OF_OPERATOR, size_of_rows(of.count, width));
    if (!at) return fault(self->api, "memory is exhausted");
    status = quantize(&of, x.data, width, at, &rows);
    if (status) return status;
    product of_rows = {self->rows->linear, &rows, weights.data, scales.data, weights.dimensions[0], 0,
                       scales.dimensions[0], out};
    return multiply(&of, &of_rows, 4);
}

static OrtStatus *row_feed_forward(void *data, OrtKernelContext *context) {
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
    if (opening.dimensions[0] % 2) return fault(self->api, "blocks of gate and up do not come in pairs");
    const ptrdiff_t wide = (ptrdiff_t)opening_scales.dimensions[0] / 2;
    status = read_weights(self->api, context, 3, wide, &down, &down_scales);
    if (!status) status = make_output(self->api, context, 0, &x, down_scales.dimensions[0], &out);
    if (status || !of.count) return status;
    const size_t inner_size = (size_t)(padded(of.count) * wide) * sizeof(float);
    const size_t first_size = size_of_rows(of.count, width), second_size = size_of_rows(of.count, wide);
    int8_t *at = memory_of(OF_OPERATOR, inner_size + (first_size > second_size ? first_size : second_size));
    if (!at) return fault(self->api, "memory is exhausted");
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

/* Attention over a cache. Of a step: queries are rotated and scaled into memory, new keys and values are put into the
 * cache, then tiles of queries attend. Where past and present are one memory, only new keys and values are written. */

typedef struct {
    const hr_row_kernels *kernels;
    const float *qkv, *past[2], *cosines, *sines;
    const int32_t *lengths; /* after the run, less one */
    float *queries, *present[2], *out;
    ptrdiff_t batch, sequence, num_heads, num_kv_heads, dim, max_length, tile, num_tiles;
    int failed; /* a task without memory */
} attention;

static ptrdiff_t past_of(const attention *of, ptrdiff_t row) { return of->lengths[row] + 1 - of->sequence; }

static void rotate(const float *from, const float *cosines, const float *sines, ptrdiff_t half, float scale, float *to) {
    for (ptrdiff_t i = 0; i < half; ++i) {
        const float a = from[i], b = from[half + i];
        to[i] = (a * cosines[i] - b * sines[i]) * scale;
        to[half + i] = (b * cosines[i] + a * sines[i]) * scale;
    }
}

/* One new token of one row. */
static void place_token(const attention *of, ptrdiff_t row, ptrdiff_t token) {
    const ptrdiff_t dim = of->dim, half = dim / 2, position = past_of(of, row) + token;
    const ptrdiff_t index = row * of->sequence + token, kv = of->num_kv_heads;
    const float *from = of->qkv + index * (of->num_heads + 2 * kv) * dim;
    const float *cosines = of->cosines + position * half, *sines = of->sines + position * half;
    const float scale = 1.0f / sqrtf((float)dim);
    for (ptrdiff_t head = 0; head < of->num_heads; ++head, from += dim)
        rotate(from, cosines, sines, half, scale, of->queries + (index * of->num_heads + head) * dim);
    for (ptrdiff_t head = 0; head < kv; ++head, from += dim)
        rotate(from, cosines, sines, half, 1.0f, of->present[0] + ((row * kv + head) * of->max_length + position) * dim);
    for (ptrdiff_t head = 0; head < kv; ++head, from += dim)
        memcpy(of->present[1] + ((row * kv + head) * of->max_length + position) * dim, from, (size_t)dim * sizeof *from);
}

static void place_part(void *data, size_t task) {
    const attention *of = data;
    const ptrdiff_t first = (ptrdiff_t)task * ROWS_A_TASK, end = of->batch * of->sequence;
    for (ptrdiff_t i = first; i < end && i < first + ROWS_A_TASK; ++i)
        place_token(of, i / of->sequence, i % of->sequence);
}

static void attend_part(void *data, size_t task) {
    attention *of = data;
    /* Later tiles see more keys: they are begun first, so that no thread is left with a long one at the end. */
    const ptrdiff_t tile = of->num_tiles - 1 - (ptrdiff_t)task / (of->batch * of->num_kv_heads);
    const ptrdiff_t head = (ptrdiff_t)task % of->num_kv_heads, row = (ptrdiff_t)task / of->num_kv_heads % of->batch;
    const ptrdiff_t first = tile * of->tile, left = of->sequence - first, group = of->num_heads / of->num_kv_heads;
    const ptrdiff_t place = (row * of->sequence * of->num_heads + head * group) * of->dim;
    const ptrdiff_t cache = (row * of->num_kv_heads + head) * of->max_length * of->dim;
    const hr_attention part = {
        .queries = of->queries + place, .keys = of->present[0] + cache, .values = of->present[1] + cache,
        .out = of->out + place, .first = first, .count = left < of->tile ? left : of->tile, .group = group,
        .stride = of->num_heads * of->dim, .past = past_of(of, row), .num_keys = of->max_length, .dim = of->dim,
    };
    float *scratch = memory_of(OF_TASK, (size_t)hr_attention_scratch(&part) * sizeof(float));
    if (scratch) of->kernels->attend(&part, scratch);
    else __atomic_store_n(&of->failed, 1, __ATOMIC_RELAXED);
}

/* What was in the cache before, where the present's memory is another. */
static void copy_past(const attention *of) {
    for (int i = 0; i < 2; ++i) {
        if (of->past[i] == of->present[i]) continue;
        for (ptrdiff_t row = 0; row < of->batch; ++row)
            for (ptrdiff_t head = 0; head < of->num_kv_heads; ++head) {
                const ptrdiff_t cache = (row * of->num_kv_heads + head) * of->max_length * of->dim;
                memcpy(of->present[i] + cache, of->past[i] + cache, (size_t)(past_of(of, row) * of->dim) * sizeof(float));
            }
    }
}

static OrtStatus *check_attention(OrtApi *api, const attention *of, const tensor *inputs) {
    const tensor *qkv = &inputs[0], *keys = &inputs[1], *lengths = &inputs[3], *cosines = &inputs[5];
    const ptrdiff_t heads = of->num_heads, kv = of->num_kv_heads;
    if (keys->rank != 4 || memcmp(keys->dimensions, inputs[2].dimensions, 4 * sizeof(int64_t)) || inputs[2].rank != 4)
        return fault(api, "past keys and values are not of one shape [batch, heads, length, channels]");
    if (of->dim % 16 || of->dim < 16 || of->dim > ATTENTION_MAX_DIM || kv < 1 || heads < kv || heads % kv ||
        heads / kv > ATTENTION_MAX_GROUP || qkv->dimensions[2] != (heads + 2 * kv) * of->dim)
        return fault(api, "heads are not of 16 to 256 channels, a multiple of 16, or do not divide evenly");
    if (keys->dimensions[0] != of->batch || lengths->rank != 1 || lengths->dimensions[0] != of->batch)
        return fault(api, "queries, cache and lengths are not of one batch");
    if (cosines->rank != 2 || inputs[6].rank != 2 || cosines->dimensions[1] * 2 != of->dim ||
        memcmp(cosines->dimensions, inputs[6].dimensions, 2 * sizeof(int64_t)))
        return fault(api, "cosines and sines are not of half a head");
    for (ptrdiff_t row = 0; row < of->batch; ++row)
        if (past_of(of, row) < 0 || of->lengths[row] >= of->max_length || of->lengths[row] >= cosines->dimensions[0])
            return fault(api, "a row is longer than the cache, or shorter than its new tokens");
    return NULL;
}

static OrtStatus *cached_attention(void *data, OrtKernelContext *context) {
    const kernel *self = data;
    OrtApi *api = self->api;
    tensor inputs[7];
    memset(inputs, 0, sizeof inputs);
    for (size_t i = 0; i < 7; ++i) {
        OrtStatus *status = read_input(api, context, i, &inputs[i]);
        if (status) return status;
    }
    if (inputs[0].rank != 3 || inputs[1].rank != 4) return fault(api, "queries have three dimensions, the cache four");
    const int64_t *qkv = inputs[0].dimensions, *cache = inputs[1].dimensions;
    attention of = {
        .kernels = self->rows, .qkv = inputs[0].data, .past = {inputs[1].data, inputs[2].data},
        .lengths = inputs[3].data, .cosines = inputs[5].data, .sines = inputs[6].data, .batch = qkv[0],
        .sequence = qkv[1], .num_kv_heads = cache[1], .dim = cache[3], .max_length = cache[2],
    };
    of.num_heads = of.dim ? qkv[2] / of.dim - 2 * of.num_kv_heads : 0;
    OrtStatus *status = check_attention(api, &of, inputs);
    if (!status) status = make_output(api, context, 0, &inputs[0], of.num_heads * of.dim, &of.out);
    for (size_t i = 0; !status && i < 2; ++i)
        status = make_output(api, context, 1 + i, &inputs[1 + i], of.dim, &of.present[i]);
    const ptrdiff_t tokens = of.batch * of.sequence;
    if (status || !tokens) return status;
    of.queries = memory_of(OF_OPERATOR, (size_t)(tokens * of.num_heads * of.dim) * sizeof(float));
    if (!of.queries) return fault(api, "memory is exhausted");
    copy_past(&of);
    const size_t parts = (size_t)((tokens + ROWS_A_TASK - 1) / ROWS_A_TASK);
    if (parts > 1) status = ORT_CALL(api, KernelContext_ParallelFor)(context, place_part, parts, 0, &of);
    else place_part(&of, 0);
    if (status) return status;
    const ptrdiff_t group = of.num_heads / of.num_kv_heads;
    of.tile = group < ATTENTION_ROWS ? ATTENTION_ROWS / group : 1;
    of.num_tiles = (of.sequence + of.tile - 1) / of.tile;
    const size_t tasks = (size_t)(of.num_tiles * of.batch * of.num_kv_heads);
    status = ORT_CALL(api, KernelContext_ParallelFor)(context, attend_part, tasks, 0, &of);
    return status || !of.failed ? status : fault(api, "memory is exhausted");
}

/* What the runtime asks of an operator */

static OrtStatus *create_kernel(const OrtCustomOp *op, OrtApi *api, const OrtKernelInfo *info, void **out) {
    (void)op;
    (void)info;
    kernel *made = malloc(sizeof *made);
    if (!made) return fault(api, "memory is exhausted");
    *made = (kernel){api, chosen};
    *out = made;
    return NULL;
}

static const char *runs_on_cpu(const OrtCustomOp *op) {
    (void)op;
    return NULL;
}

static int float_or_codes(const OrtCustomOp *op, size_t index) {
    (void)op;
    return index % 2 ? ORT_INT8 : ORT_FLOAT; /* rows, weights, scales, weights, scales */
}

static int float_or_lengths(const OrtCustomOp *op, size_t index) {
    (void)op;
    return index == 3 || index == 4 ? ORT_INT32 : ORT_FLOAT; /* seqlens_k, total_sequence_length */
}

static int gives_float(const OrtCustomOp *op, size_t index) {
    (void)op;
    (void)index;
    return ORT_FLOAT;
}

static int is_required(const OrtCustomOp *op, size_t index) {
    (void)op;
    (void)index;
    return 0;
}

static int in_default_memory(const OrtCustomOp *op, size_t index) {
    (void)op;
    (void)index;
    return 0;
}

static int none(const OrtCustomOp *op) {
    (void)op;
    return 0;
}

static int first_version(const OrtCustomOp *op) {
    (void)op;
    return 1;
}

static size_t takes_three(const OrtCustomOp *op) {
    (void)op;
    return 3;
}

static size_t takes_five(const OrtCustomOp *op) {
    (void)op;
    return 5;
}

static size_t takes_seven(const OrtCustomOp *op) {
    (void)op;
    return 7;
}

static size_t gives_three(const OrtCustomOp *op) {
    (void)op;
    return 3;
}

static size_t gives_one(const OrtCustomOp *op) {
    (void)op;
    return 1;
}

static const char *linear_name(const OrtCustomOp *op) {
    (void)op;
    return "RowLinear";
}

static const char *attention_name(const OrtCustomOp *op) {
    (void)op;
    return "CachedAttention";
}

static const char *feed_forward_name(const OrtCustomOp *op) {
    (void)op;
    return "RowFeedForward";
}

#define OPERATOR(name, types, num_inputs, num_outputs, compute)                                                    \
    {                                                                                                              \
        .version = ORT_VERSION_NEEDED, .GetName = name, .GetExecutionProviderType = runs_on_cpu,                   \
        .GetInputType = types, .GetInputTypeCount = num_inputs, .GetOutputType = gives_float,                      \
        .GetOutputTypeCount = num_outputs, .KernelDestroy = free, .GetInputCharacteristic = is_required,           \
        .GetOutputCharacteristic = is_required, .GetInputMemoryType = in_default_memory,                           \
        .GetVariadicInputMinArity = none, .GetVariadicInputHomogeneity = none, .GetVariadicOutputMinArity = none,  \
        .GetVariadicOutputHomogeneity = none, .CreateKernelV2 = create_kernel, .KernelComputeV2 = compute,         \
        .GetStartVersion = first_version, .GetEndVersion = first_version                                           \
    }

static const OrtCustomOp operators[] = {
    OPERATOR(linear_name, float_or_codes, takes_three, gives_one, row_linear),
    OPERATOR(feed_forward_name, float_or_codes, takes_five, gives_one, row_feed_forward),
    OPERATOR(attention_name, float_or_lengths, takes_seven, gives_three, cached_attention),
};

/* Called by SessionOptions.register_custom_ops_library. The domain lives as long as the process, as sessions may. */
EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    static OrtDomain *domain;
    static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
    OrtApi *api = base->GetApi(ORT_VERSION_NEEDED);
    if (!api) return base->GetApi(1) ? fault(base->GetApi(1), "the runtime is older than 1.17") : NULL;
    if (!chosen) return fault(api, "no variant of the operators runs on this machine");
    OrtStatus *status = NULL;
    pthread_mutex_lock(&once);
    if (!domain) {
        OrtDomain *made = NULL;
        status = ORT_CALL(api, CreateCustomOpDomain)("headrace", &made);
        for (size_t i = 0; !status && i < sizeof operators / sizeof operators[0]; ++i)
            status = ORT_CALL(api, CustomOpDomain_Add)(made, &operators[i]);
        if (!status) domain = made;
    }
    pthread_mutex_unlock(&once);
    return status ? status : ORT_CALL(api, AddCustomOpDomain)(options, domain);
}
