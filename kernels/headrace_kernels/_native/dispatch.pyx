"""Which variant runs. This module alone links the kernels; the others borrow its table."""

cdef const hr_kernels *_active = hr_variant(hr_num_variants() - 1)


cdef const hr_kernels *active() noexcept:
    return _active


cdef const hr_scan_driver *scanning() noexcept:
    return &hr_scanning


cdef str _name(int position):
    return hr_variant(position).isa.decode("ascii")


def compiled():
    """Names of the variants in this build, widest first."""
    return tuple([_name(position) for position in range(hr_num_variants())])


def runnable():
    """Names of the variants that this machine can run, widest first; never empty."""
    return tuple([_name(position) for position in range(hr_num_variants()) if hr_variant_runs(position)])


def current():
    """Name of the variant in force."""
    return _active.isa.decode("ascii")


def select(str isa not None):
    """Puts `isa` in force for the whole process; ValueError if this machine cannot run it."""
    global _active
    cdef int position
    for position in range(hr_num_variants()):
        if _name(position) == isa and hr_variant_runs(position):
            _active = hr_variant(position)
            return
    raise ValueError(f"{isa!r} is not one of {', '.join(runnable())}")
