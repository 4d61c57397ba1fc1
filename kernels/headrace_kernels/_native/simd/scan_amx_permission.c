/* Tile registers take three yeses: the CPU has them, the system saves them, and it lets this process use them. */
#define _GNU_SOURCE
#include "kernels.h"
#include "scan_amx.h"

#if HR_X86 && defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_TILE_DATA 18
#define TILE_STATES ((uint64_t)3 << 17) /* configuration and data */

static int cpu_has_tiles(void) {
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0; /* OSXSAVE: XGETBV may be asked */
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (((uint64_t)high << 32 | low | ~TILE_STATES) != UINT64_MAX) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) && (d >> 25 & 1);
}

int hr_amx_permitted(void) {
    static int answer = -1; /* whoever comes first asks; two who come together get the same answer */
    if (answer < 0) answer = cpu_has_tiles() && !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE_DATA);
    return answer;
}
#else
int hr_amx_permitted(void) { return 0; }
#endif
