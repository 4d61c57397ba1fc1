/* Put before every C++ file of llama.cpp when GCC 12 compiles it (Makefile, generation peers).
 *
 * GCC 12 tells its optimiser that ldtilecfg reads 8 bytes, where it reads 64: the stores that make the configuration are
 * dropped, and the first AMX multiplication ends the process. Here the whole configuration is named as read. */
#pragma once
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%0" : : "m"(*(const char(*)[64])(config)) : "memory")
#endif
