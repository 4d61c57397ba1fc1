/* CachedAttention. Of a step: queries are rotated and scaled into memory, new keys and values are put into the
 * cache, then tiles of queries attend. Where past and present are one memory, only new keys and values are written. */
#include "run.h"

#include <math.h>
#include <string.h>

typedef struct {
    const hr_row_kernels *kernels;
    const float *qkv, *past[2], *cosines, *sines;
    const int32_t *lengths; /* after the run, less one */
    float *queries, *present[2], *out;
    ptrdiff_t batch, sequence, num_heads, num_kv_heads, dim, max_length, tile, num_tiles;
    int failed; /* a task without memory */
} attention;

static ptrdiff_t past_of(const attention *of, ptrdiff_t row) { return of->lengths[row] + 1 - of->sequence; }

static void rotate(const float *from, const float *cosines, const float *sines, ptrdiff_t half, float scale,
                   float *to) {
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
    const ptrdiff_t place = (row * kv * of->max_length + position) * dim, next = of->max_length * dim;
    for (ptrdiff_t head = 0; head < kv; ++head, from += dim)
        rotate(from, cosines, sines, half, 1.0f, of->present[0] + place + head * next);
    for (ptrdiff_t head = 0; head < kv; ++head, from += dim)
        memcpy(of->present[1] + place + head * next, from, (size_t)dim * sizeof *from);
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
    float *scratch = hr_memory_of(OF_TASK, (size_t)hr_attention_scratch(&part) * sizeof(float));
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
                const size_t size = (size_t)(past_of(of, row) * of->dim) * sizeof(float);
                memcpy(of->present[i] + cache, of->past[i] + cache, size);
            }
    }
}

static OrtStatus *check_attention(OrtApi *api, const attention *of, const tensor *inputs) {
    const tensor *qkv = &inputs[0], *keys = &inputs[1], *lengths = &inputs[3], *cosines = &inputs[5];
    const ptrdiff_t heads = of->num_heads, kv = of->num_kv_heads;
    if (keys->rank != 4 || memcmp(keys->dimensions, inputs[2].dimensions, 4 * sizeof(int64_t)) || inputs[2].rank != 4)
        return hr_fault(api, "past keys and values are not of one shape [batch, heads, length, channels]");
    if (of->dim % 16 || of->dim < 16 || of->dim > ATTENTION_MAX_DIM || kv < 1 || heads < kv || heads % kv ||
        heads / kv > ATTENTION_MAX_GROUP || qkv->dimensions[2] != (heads + 2 * kv) * of->dim)
        return hr_fault(api, "heads are not of 16 to 256 channels, a multiple of 16, or do not divide evenly");
    if (keys->dimensions[0] != of->batch || lengths->rank != 1 || lengths->dimensions[0] != of->batch)
        return hr_fault(api, "queries, cache and lengths are not of one batch");
    if (cosines->rank != 2 || inputs[6].rank != 2 || cosines->dimensions[1] * 2 != of->dim ||
        memcmp(cosines->dimensions, inputs[6].dimensions, 2 * sizeof(int64_t)))
        return hr_fault(api, "cosines and sines are not of half a head");
    for (ptrdiff_t row = 0; row < of->batch; ++row)
        if (past_of(of, row) < 0 || of->lengths[row] >= of->max_length || of->lengths[row] >= cosines->dimensions[0])
            return hr_fault(api, "a row is longer than the cache, or shorter than its new tokens");
    return NULL;
}

OrtStatus *hr_cached_attention(void *data, OrtKernelContext *context) {
    const kernel *self = data;
    OrtApi *api = self->api;
    tensor inputs[7];
    memset(inputs, 0, sizeof inputs);
    for (size_t i = 0; i < 7; ++i) {
        OrtStatus *status = hr_read_input(api, context, i, &inputs[i]);
        if (status) return status;
    }
    if (inputs[0].rank != 3 || inputs[1].rank != 4)
        return hr_fault(api, "queries have three dimensions, the cache four");
    const int64_t *qkv = inputs[0].dimensions, *cache = inputs[1].dimensions;
    attention of = {
        .kernels = self->rows, .qkv = inputs[0].data, .past = {inputs[1].data, inputs[2].data},
        .lengths = inputs[3].data, .cosines = inputs[5].data, .sines = inputs[6].data, .batch = qkv[0],
        .sequence = qkv[1], .num_kv_heads = cache[1], .dim = cache[3], .max_length = cache[2],
    };
    of.num_heads = of.dim ? qkv[2] / of.dim - 2 * of.num_kv_heads : 0;
    OrtStatus *status = check_attention(api, &of, inputs);
    if (!status) status = hr_make_output(api, context, 0, &inputs[0], of.num_heads * of.dim, &of.out);
    for (size_t i = 0; !status && i < 2; ++i)
        status = hr_make_output(api, context, 1 + i, &inputs[1 + i], of.dim, &of.present[i]);
    const ptrdiff_t tokens = of.batch * of.sequence;
    if (status || !tokens) return status;
    of.queries = hr_memory_of(OF_OPERATOR, (size_t)(tokens * of.num_heads * of.dim) * sizeof(float));
    if (!of.queries) return hr_fault(api, "memory is exhausted");
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
    return status || !of.failed ? status : hr_fault(api, "memory is exhausted");
}
