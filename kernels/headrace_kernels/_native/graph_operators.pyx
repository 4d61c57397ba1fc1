"""The library of graph operators: this module's own file, which ONNX Runtime loads a second time by its path."""

cdef extern from "operators.h" nogil:
    ctypedef struct hr_row_kernels:
        const char *isa

    int hr_num_row_variants()
    const hr_row_kernels *hr_row_variant(int position)
    int hr_row_variant_runs(int position)
    void hr_use_row_kernels(const hr_row_kernels *kernels)


def runnable():
    """Names of the variants that this machine can run, widest first; there may be none."""
    cdef list names = []
    cdef int position
    for position in range(hr_num_row_variants()):
        if hr_row_variant_runs(position):
            names.append(hr_row_variant(position).isa.decode("ascii"))
    return tuple(names)


def select(str isa not None):
    """Sessions opened from now on run this variant; ValueError if this machine cannot."""
    cdef int position
    for position in range(hr_num_row_variants()):
        if hr_row_variant(position).isa.decode("ascii") == isa and hr_row_variant_runs(position):
            hr_use_row_kernels(hr_row_variant(position))
            return
    raise ValueError(f"{isa!r} is not one of {', '.join(runnable()) or 'no variants'}")
