"""Top-k on arrays that the façade has checked: not empty, C-contiguous, aligned, 1 <= width <= c."""

from libc.stdint cimport int64_t

from headrace_kernels._native.dispatch cimport active, hr_selection


def topk(
    const float[:, ::1] scores not None,
    float threshold,
    int64_t[:, ::1] indices not None,
    float[:, ::1] top not None,
    int64_t[::1] counts not None,
):
    """Writes each row's largest scores; the first row with NaN in it, or -1."""
    cdef const hr_selection *kernels = active().selection
    cdef Py_ssize_t bad
    with nogil:
        bad = kernels.topk(
            &scores[0, 0], scores.shape[0], scores.shape[1], top.shape[1], threshold,
            &indices[0, 0], &top[0, 0], &counts[0],
        )
    return bad


def softmax_topk(
    const float[:, ::1] logits not None,
    float threshold,
    int64_t[:, ::1] indices not None,
    float[:, ::1] top not None,
    int64_t[::1] counts not None,
):
    """Writes each row's likeliest classes; the first row without a softmax, or -1."""
    cdef const hr_selection *kernels = active().selection
    cdef Py_ssize_t bad
    with nogil:
        bad = kernels.softmax_topk(
            &logits[0, 0], logits.shape[0], logits.shape[1], top.shape[1], threshold,
            &indices[0, 0], &top[0, 0], &counts[0],
        )
    return bad
