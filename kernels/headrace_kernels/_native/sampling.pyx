"""Sampling of rows that the façade has checked: at least one token a row, every token named in [0, v)."""

from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free, malloc

from headrace_kernels._native.dispatch cimport active, hr_sample_request, hr_sampling


cdef class Scratch:
    """Memory that threads at work on rows of so many tokens need; one call at a time may have it."""

    cdef unsigned char *memory
    cdef Py_ssize_t stride
    cdef readonly int num_threads
    cdef readonly Py_ssize_t num_tokens

    def __cinit__(self, int num_threads, Py_ssize_t num_tokens):
        self.num_threads, self.num_tokens = num_threads, num_tokens
        self.stride = active().sampling.scratch_bytes(num_tokens)
        self.memory = <unsigned char *> malloc(num_threads * self.stride)
        if self.memory == NULL:
            raise MemoryError("no memory to sample with")

    def __dealloc__(self):
        free(self.memory)


def sample(
    const float[:, ::1] logits not None,
    list rows not None,
    int num_threads,
    Scratch scratch not None,
    int32_t[:, ::1] top_tokens,
    float[:, ::1] top_values,
):
    """(status, token, logprob) of each row; top_tokens and top_values have a row each, None where no row asks."""
    cdef const hr_sampling *kernels = active().sampling
    cdef Py_ssize_t row, n = logits.shape[0]
    cdef hr_sample_request *requests = <hr_sample_request *> calloc(n, sizeof(hr_sample_request))
    if requests == NULL:
        raise MemoryError("no memory for the rows' parameters")
    try:
        for row in range(n):
            requests[row].logits = &logits[row, 0]
            requests[row].num_tokens = logits.shape[1]
            if top_tokens is not None:
                requests[row].top_tokens = &top_tokens[row, 0]
                requests[row].top_values = &top_values[row, 0]
            _fill(requests + row, rows[row])
        with nogil:
            kernels.run(kernels, requests, n, num_threads, scratch.memory, scratch.stride)
        return [(requests[row].status, requests[row].token, requests[row].logprob) for row in range(n)]
    finally:
        free(requests)


cdef int _fill(hr_sample_request *request, tuple row) except -1:
    # The arrays belong to `row`, which the caller's list keeps alive.
    cdef const uint32_t[::1] words
    cdef const int32_t[::1] tokens, counts
    cdef const float[::1] values
    (
        request.temperature, request.top_k, request.top_p, request.min_p, request.uniform, allowed,
        bias_tokens, bias_values, counted_tokens, given_counts,
        request.repetition, request.frequency, request.presence, top_logprobs,
    ) = row
    request.top_logprobs = -1 if top_logprobs is None else top_logprobs
    if allowed is not None:
        words = allowed
        request.allowed = &words[0]
    if bias_tokens is not None and len(bias_tokens):
        tokens, values = bias_tokens, bias_values
        request.bias_tokens, request.bias_values, request.num_biases = &tokens[0], &values[0], tokens.shape[0]
    if counted_tokens is not None and len(counted_tokens):
        tokens, counts = counted_tokens, given_counts
        request.counted_tokens, request.counts, request.num_counted = &tokens[0], &counts[0], tokens.shape[0]
    return 0
