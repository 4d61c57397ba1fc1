/* Memory that is scanned: aligned to cache lines, on large pages where the system has them. */
#ifndef HEADRACE_SCAN_MEMORY_H
#define HEADRACE_SCAN_MEMORY_H

#include <stddef.h>

/* Zeroed, aligned to 64 bytes; NULL when there is none. Free it with the same size. */
void *hr_pages_new(size_t bytes);
void hr_pages_free(void *pages, size_t bytes);

#endif
