"""Softmax and sigmoid on arrays that the façade has checked: not empty, C-contiguous, aligned, f32."""

from headrace_kernels._native.dispatch cimport active, hr_activation


def softmax(const float[:, ::1] logits not None, float[:, ::1] out not None):
    """Writes the rows' softmax to `out`; the first row that has none, or -1."""
    cdef const hr_activation *kernels = active().activation
    cdef Py_ssize_t bad
    with nogil:
        bad = kernels.softmax(&logits[0, 0], logits.shape[0], logits.shape[1], &out[0, 0])
    return bad


def sigmoid(const float[::1] x not None, float[::1] out not None):
    """Writes 1 / (1 + exp(-x)) to `out`; the first NaN's position, or -1."""
    cdef const hr_activation *kernels = active().activation
    cdef Py_ssize_t bad
    with nogil:
        bad = kernels.sigmoid(&x[0], x.shape[0], &out[0])
    return bad
