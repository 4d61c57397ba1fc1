"""Inner products and lengths on arrays that the façade has checked: not empty, C-contiguous, aligned, f32."""

from headrace_kernels._native.dispatch cimport active, hr_similarity


def first_nonfinite(const float[:, ::1] x not None):
    """The first row with NaN or an infinity, or -1."""
    cdef const hr_similarity *kernels = active().similarity
    cdef Py_ssize_t bad
    with nogil:
        bad = kernels.first_nonfinite(&x[0, 0], x.shape[0], x.shape[1])
    return bad


def normalize(const float[:, ::1] x not None, float[:, ::1] out not None):
    """Writes unit rows, zero rows as they are; the first row that is not finite, or -1. `out` may be `x`."""
    cdef const hr_similarity *kernels = active().similarity
    cdef Py_ssize_t bad
    with nogil:
        bad = kernels.normalize(&x[0, 0], x.shape[0], x.shape[1], &out[0, 0])
    return bad


def inverse_norms(const float[:, ::1] x not None, float[::1] out not None):
    """Writes 1 / |row| (0 for zero, NaN where f32 squares will not do): (first row not finite or -1, how many NaN)."""
    cdef const hr_similarity *kernels = active().similarity
    cdef Py_ssize_t bad, extreme = 0
    with nogil:
        bad = kernels.inverse_norms(&x[0, 0], x.shape[0], x.shape[1], &out[0], &extreme)
    return bad, extreme


def dot_matrix(
    const float[:, ::1] a not None, const float[::1] inverse_a, const float[:, ::1] b not None,
    const float[::1] inverse_b, float[:, ::1] out not None,
):
    """Writes <a[i], b[j]>, or cosines where both rows' inverse norms are given."""
    cdef const hr_similarity *kernels = active().similarity
    cdef const float *scale_a = NULL
    cdef const float *scale_b = NULL
    if inverse_a is not None and inverse_b is not None:
        scale_a, scale_b = &inverse_a[0], &inverse_b[0]
    with nogil:
        kernels.dot_matrix(
            &a[0, 0], scale_a, a.shape[0], &b[0, 0], scale_b, b.shape[0], a.shape[1], &out[0, 0]
        )


def dot_pairs(
    const float[:, ::1] a not None, const float[::1] inverse_a, const float[:, ::1] b not None,
    const float[::1] inverse_b, float[::1] out not None,
):
    """Writes <a[i], b[i]>, or cosines where both rows' inverse norms are given."""
    cdef const hr_similarity *kernels = active().similarity
    cdef const float *scale_a = NULL
    cdef const float *scale_b = NULL
    if inverse_a is not None and inverse_b is not None:
        scale_a, scale_b = &inverse_a[0], &inverse_b[0]
    with nogil:
        kernels.dot_pairs(&a[0, 0], scale_a, &b[0, 0], scale_b, a.shape[0], a.shape[1], &out[0])
