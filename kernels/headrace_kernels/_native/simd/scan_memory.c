#define _DEFAULT_SOURCE
#include "scan_memory.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define LARGE_PAGE ((size_t)2 << 20)

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

static size_t whole_pages(size_t bytes) { return (bytes + LARGE_PAGE - 1) & ~(LARGE_PAGE - 1); }

static void *mapped(size_t bytes) {
    const size_t whole = whole_pages(bytes), asked = whole + LARGE_PAGE;
    char *start = mmap(NULL, asked, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return NULL;
    const size_t before = -(uintptr_t)start & (LARGE_PAGE - 1), after = asked - before - whole;
    if (before) munmap(start, before);
    if (after) munmap(start + before + whole, after);
#ifdef MADV_HUGEPAGE
    madvise(start + before, whole, MADV_HUGEPAGE); /* small pages cost a scan a sixth of its speed */
#endif
    return start + before;
}

void *hr_pages_new(size_t bytes) {
    void *memory = NULL;
    if (bytes >= LARGE_PAGE) return mapped(bytes);
    if (posix_memalign(&memory, 64, bytes ? bytes : 64)) return NULL;
    return memset(memory, 0, bytes ? bytes : 64);
}

void hr_pages_free(void *pages, size_t bytes) {
    if (!pages) return;
    if (bytes >= LARGE_PAGE) munmap(pages, whole_pages(bytes));
    else free(pages);
}
