from libc.stdint cimport int8_t, int64_t, uint8_t


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

    ctypedef struct hr_kernels:
        const char *isa
        const hr_activation *activation
        const hr_selection *selection
        const hr_pooling *pooling
        const hr_similarity *similarity
        const hr_quantization *quantization

    int hr_num_variants()
    const hr_kernels *hr_variant(int position)
    int hr_variant_runs(int position)


# The table in force. Read it with the GIL held, once a call, so that a call never mixes two variants.
cdef const hr_kernels *active() noexcept
