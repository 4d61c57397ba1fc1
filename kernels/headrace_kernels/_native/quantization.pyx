"""Integer codes on arrays that the façade has checked: not empty, C-contiguous, aligned, f32."""

from libc.stdint cimport int8_t

from headrace_kernels._native.dispatch cimport active, hr_quantization


def int8(const float[:, ::1] x not None, int8_t[:, ::1] codes not None, float[::1] scale not None):
    """Writes symmetric codes and each row's scale; the first row that is not finite, or -1."""
    cdef const hr_quantization *kernels = active().quantization
    cdef Py_ssize_t bad
    with nogil:
        bad = kernels.int8(&x[0, 0], x.shape[0], x.shape[1], &codes[0, 0], &scale[0])
    return bad
