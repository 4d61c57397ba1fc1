"""Packed rows and scans over them, on arrays that the façade has checked: C-contiguous, aligned, of fitting lengths."""

from cpython.buffer cimport PyBUF_WRITABLE
from libc.float cimport FLT_MAX
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from headrace_kernels._native.dispatch cimport active, hr_items, hr_scan, hr_scan_driver, hr_scan_request, scanning


cdef class Items:
    """Owns packed rows: immutable, so that any number of threads may scan them. As a buffer: f32[n, d], read-only."""

    cdef hr_items items
    cdef Py_ssize_t[2] shape
    cdef Py_ssize_t[2] strides

    def __cinit__(self, const float[:, ::1] vectors not None, bint normalize, bint with_codes):
        cdef const hr_scan_driver *driver = scanning()
        cdef const float *rows = &vectors[0, 0] if vectors.shape[0] and vectors.shape[1] else NULL
        cdef int failed
        with nogil:
            failed = driver.pack(rows, vectors.shape[0], vectors.shape[1], normalize, with_codes, &self.items)
        if failed:
            raise MemoryError("no memory for packed rows")
        self.shape[0], self.shape[1] = self.items.num_rows, self.items.dimension
        self.strides[0], self.strides[1] = self.items.stride * sizeof(float), sizeof(float)

    def __dealloc__(self):
        scanning().release(&self.items)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("packed rows are read-only")
        buffer.buf = <void *> self.items.rows
        buffer.obj = self
        buffer.len = self.shape[0] * self.shape[1] * sizeof(float)
        buffer.readonly = 1
        buffer.itemsize = sizeof(float)
        buffer.format = b"f"
        buffer.ndim = 2
        buffer.shape = self.shape
        buffer.strides = self.strides
        buffer.suboffsets = NULL
        buffer.internal = NULL

    @property
    def num_bytes(self):
        """Bytes of f32 rows and of int8 blocks."""
        return self.items.rows_bytes, self.items.blocks_bytes

    @property
    def has_codes(self):
        """Whether int8 blocks were packed."""
        return self.items.blocks is not NULL

    @property
    def bounds(self):
        """(largest row norm, largest residual norm in units of the row's scale, largest norm of codes)."""
        return self.items.max_norm, self.items.max_residual, self.items.max_code


def prefers_codes():
    """Whether the variant in force answers sooner by codes."""
    return bool(active().scan.prefers_codes)


def current():
    """Name of the variant that scans in force were written for."""
    return active().scan.isa.decode("ascii")


def overflowing(Items items not None, const float[:, ::1] queries not None):
    """The first query whose inner products may pass f32, or -1."""
    cdef const hr_scan_driver *driver = scanning()
    cdef Py_ssize_t query
    for query in range(queries.shape[0]):
        if not driver.norm(&queries[query, 0], queries.shape[1]) * items.items.max_norm < FLT_MAX:
            return query
    return -1


def scan(
    Items items not None,
    const float[:, ::1] queries not None,
    int use_codes,
    int num_threads,
    bint normalize,
    float least,
    const int64_t[::1] excluded,
    const int64_t[::1] excluded_starts,
    const uint64_t[::1] allowed,
    const int32_t[::1] chosen,
    int64_t[:, ::1] indices not None,
    float[:, ::1] scores not None,
    int64_t[::1] counts not None,
):
    """Writes the best rows of each query: (rows scored again, queries that fell back to an exact scan)."""
    cdef hr_scan_request request
    cdef const hr_scan_driver *driver = scanning()
    cdef const hr_scan *kernels = active().scan
    cdef int failed
    memset(&request, 0, sizeof(request))
    request.queries = &queries[0, 0]
    request.num_queries, request.k = queries.shape[0], indices.shape[1]
    request.use_codes, request.num_threads, request.normalize = use_codes, num_threads, normalize
    request.least = least
    if excluded is not None and excluded.shape[0]:
        request.excluded, request.num_excluded = &excluded[0], excluded.shape[0]
        if excluded_starts is not None:
            request.excluded_starts = &excluded_starts[0]
    if allowed is not None:
        request.allowed = &allowed[0]
    if chosen is not None:
        request.chosen, request.num_chosen = &chosen[0], chosen.shape[0]
    request.indices, request.scores, request.counts = &indices[0, 0], &scores[0, 0], &counts[0]
    with nogil:
        failed = driver.run(kernels, &items.items, &request)
    if failed:
        raise MemoryError("no memory for candidates")
    return request.num_candidates, request.num_fallbacks
