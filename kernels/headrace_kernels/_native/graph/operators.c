/* Operators of ONNX Runtime for decoder graphs whose activations are quantized row by row; domain "headrace".
 *
 *     RowLinear(x, weights, scales) -> x times weights
 *     CachedAttention(qkv, past_key, past_value, seqlens_k, total_sequence_length, cosines, sines)
 *         -> attended, present_key, present_value
 *     RowFeedForward(x, gate_up, gate_up_scales, down, down_scales) -> (silu(x gate) * (x up)) down
 *
 * Weights and scales stand as rows.h says; of gate_up, blocks of gate and up alternate.
 */
#include "operators.h"

#include "run.h"

#include <pthread.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

static const hr_row_kernels *chosen;

void hr_use_row_kernels(const hr_row_kernels *kernels) { chosen = kernels; }

/* What the runtime asks of an operator */

static OrtStatus *create_kernel(const OrtCustomOp *op, OrtApi *api, const OrtKernelInfo *info, void **out) {
    (void)op;
    (void)info;
    kernel *made = malloc(sizeof *made);
    if (!made) return hr_fault(api, "memory is exhausted");
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
    OPERATOR(linear_name, float_or_codes, takes_three, gives_one, hr_row_linear),
    OPERATOR(feed_forward_name, float_or_codes, takes_five, gives_one, hr_row_feed_forward),
    OPERATOR(attention_name, float_or_lengths, takes_seven, gives_three, hr_cached_attention),
};

/* Called by SessionOptions.register_custom_ops_library. The domain lives as long as the process, as sessions may. */
EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    static OrtDomain *domain;
    static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
    OrtApi *api = base->GetApi(ORT_VERSION_NEEDED);
    if (!api) return base->GetApi(1) ? hr_fault(base->GetApi(1), "the runtime is older than 1.17") : NULL;
    if (!chosen) return hr_fault(api, "no variant of the operators runs on this machine");
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
