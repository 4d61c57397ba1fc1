"""Pooling on arrays that the façade has checked: not empty, C-contiguous, aligned, f32, the mask in bytes."""

from libc.stdint cimport uint8_t

from headrace_kernels._native.dispatch cimport active, hr_pooling


def mean_pool(
    const float[:, :, ::1] hidden not None, const uint8_t[:, ::1] mask not None, bint normalize,
    float[:, ::1] out not None,
):
    """Writes the means of kept tokens; the first row that is not finite, or -1."""
    cdef const hr_pooling *kernels = active().pooling
    cdef Py_ssize_t bad
    with nogil:
        bad = kernels.mean_pool(
            &hidden[0, 0, 0], &mask[0, 0], hidden.shape[0], hidden.shape[1], hidden.shape[2], normalize, &out[0, 0]
        )
    return bad


def max_pool(
    const float[:, :, ::1] hidden not None, const uint8_t[:, ::1] mask not None, float[:, ::1] out not None
):
    """Writes the maxima of kept tokens; the first row that is not finite, or -1."""
    cdef const hr_pooling *kernels = active().pooling
    cdef Py_ssize_t bad
    with nogil:
        bad = kernels.max_pool(
            &hidden[0, 0, 0], &mask[0, 0], hidden.shape[0], hidden.shape[1], hidden.shape[2], &out[0, 0]
        )
    return bad


def token_pool(
    const float[:, :, ::1] hidden not None, const uint8_t[:, ::1] mask not None, bint last,
    float[:, ::1] out not None,
):
    """Writes the first or the last kept token; the first row that is not finite, or -1."""
    cdef const hr_pooling *kernels = active().pooling
    cdef Py_ssize_t bad
    with nogil:
        bad = kernels.token_pool(
            &hidden[0, 0, 0], &mask[0, 0], hidden.shape[0], hidden.shape[1], hidden.shape[2], last, &out[0, 0]
        )
    return bad
