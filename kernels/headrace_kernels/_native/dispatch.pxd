from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "kernels.h" nogil:
    ctypedef struct hr_activation:
        Py_ssize_t (*softmax)(const float *, Py_ssize_t, Py_ssize_t, float *) noexcept nogil
        Py_ssize_t (*sigmoid)(const float *, Py_ssize_t, float *) noexcept nogil

    ctypedef struct hr_selection:
        Py_ssize_t (*topk)(
            const float *, Py_ssize_t, Py_ssize_t, Py_ssize_t, float, int64_t *, float *, int64_t *
        ) noexcept nogil
        Py_ssize_t (*softmax_topk)(
            const float *, Py_ssize_t, Py_ssize_t, Py_ssize_t, float, int64_t *, float *, int64_t *
        ) noexcept nogil

    ctypedef struct hr_pooling:
        Py_ssize_t (*mean_pool)(
            const float *, const uint8_t *, Py_ssize_t, Py_ssize_t, Py_ssize_t, int, float *
        ) noexcept nogil
        Py_ssize_t (*max_pool)(
            const float *, const uint8_t *, Py_ssize_t, Py_ssize_t, Py_ssize_t, float *
        ) noexcept nogil
        Py_ssize_t (*token_pool)(
            const float *, const uint8_t *, Py_ssize_t, Py_ssize_t, Py_ssize_t, int, float *
        ) noexcept nogil

    ctypedef struct hr_similarity:
        Py_ssize_t (*first_nonfinite)(const float *, Py_ssize_t, Py_ssize_t) noexcept nogil
        Py_ssize_t (*normalize)(const float *, Py_ssize_t, Py_ssize_t, float *) noexcept nogil
        Py_ssize_t (*inverse_norms)(const float *, Py_ssize_t, Py_ssize_t, float *, Py_ssize_t *) noexcept nogil
        void (*dot_matrix)(
            const float *, const float *, Py_ssize_t, const float *, const float *, Py_ssize_t, Py_ssize_t, float *
        ) noexcept nogil
        void (*dot_pairs)(
            const float *, const float *, const float *, const float *, Py_ssize_t, Py_ssize_t, float *
        ) noexcept nogil

    ctypedef struct hr_quantization:
        Py_ssize_t (*int8)(const float *, Py_ssize_t, Py_ssize_t, int8_t *, float *) noexcept nogil

    ctypedef struct hr_items:
        Py_ssize_t num_rows, dimension, stride, rows_bytes, blocks_bytes
        float *rows
        unsigned char *blocks
        double max_norm, max_residual, max_code

    ctypedef struct hr_scan:
        const char *isa
        int prefers_codes

    ctypedef struct hr_scan_request:
        const float *queries
        Py_ssize_t num_queries, k
        int use_codes, num_threads, normalize
        float least
        const int64_t *excluded
        const int64_t *excluded_starts
        Py_ssize_t num_excluded
        const uint64_t *allowed
        const int32_t *chosen
        Py_ssize_t num_chosen
        int64_t *indices
        float *scores
        int64_t *counts
        int64_t num_candidates, num_fallbacks

    ctypedef struct hr_scan_driver:
        int (*pack)(const float *, Py_ssize_t, Py_ssize_t, int, int, hr_items *) noexcept nogil
        void (*release)(hr_items *) noexcept nogil
        int (*run)(const hr_scan *, const hr_items *, hr_scan_request *) noexcept nogil
        double (*norm)(const float *, Py_ssize_t) noexcept nogil

    const hr_scan_driver hr_scanning

    ctypedef struct hr_sample_request:
        const float *logits
        Py_ssize_t num_tokens
        double temperature, top_p, min_p, uniform
        Py_ssize_t top_k
        const uint32_t *allowed
        const int32_t *bias_tokens
        const float *bias_values
        Py_ssize_t num_biases
        const int32_t *counted_tokens
        const int32_t *counts
        Py_ssize_t num_counted
        float repetition, frequency, presence
        Py_ssize_t top_logprobs
        int32_t status, token
        float logprob
        int32_t *top_tokens
        float *top_values

    ctypedef struct hr_sampling:
        void (*run)(
            const hr_sampling *, hr_sample_request *, Py_ssize_t, int, unsigned char *, Py_ssize_t
        ) noexcept nogil
        Py_ssize_t (*scratch_bytes)(Py_ssize_t) noexcept nogil

    ctypedef struct hr_kernels:
        const char *isa
        const hr_activation *activation
        const hr_selection *selection
        const hr_pooling *pooling
        const hr_similarity *similarity
        const hr_quantization *quantization
        const hr_scan *scan
        const hr_sampling *sampling

    int hr_num_variants()
    const hr_kernels *hr_variant(int position)
    int hr_variant_runs(int position)


# The table in force. Read it with the GIL held, once a call, so that a call never mixes two variants.
cdef const hr_kernels *active() noexcept


# What scans share whatever the variant: packing, and the run of one request.
cdef const hr_scan_driver *scanning() noexcept
