/* The tables of this build, and which of them this machine can run. */
#include "kernels.h"
#include "scan_amx.h"

#include <string.h>

#define HR_DECLARE(isa)                               \
    extern const hr_activation hr_activation_##isa;   \
    extern const hr_selection hr_selection_##isa;     \
    extern const hr_pooling hr_pooling_##isa;         \
    extern const hr_similarity hr_similarity_##isa;   \
    extern const hr_quantization hr_quantization_##isa; \
    extern const hr_sampling hr_sampling_##isa;       \
    extern const hr_scan hr_scan_##isa;

/* Instructions on int8 serve scans alone: the other families of such a variant are those of `base`. */
#define HR_TABLE(isa, base)                                                                     \
    {#isa, &hr_activation_##base, &hr_selection_##base, &hr_pooling_##base, &hr_similarity_##base, \
     &hr_quantization_##base, &hr_scan_##isa, &hr_sampling_##base}

HR_DECLARE(portable)
#if HR_X86
HR_DECLARE(avx2)
HR_DECLARE(avx512)
extern const hr_scan hr_scan_avx512_vnni, hr_scan_amx;
#endif

static const hr_kernels tables[] = {
#if HR_X86
    HR_TABLE(amx, avx512),
    HR_TABLE(avx512_vnni, avx512),
    HR_TABLE(avx512, avx512),
    HR_TABLE(avx2, avx2),
#endif
    HR_TABLE(portable, portable),
};

int hr_num_variants(void) { return (int)(sizeof tables / sizeof tables[0]); }

const hr_kernels *hr_variant(int position) { return &tables[position]; }

#if HR_X86
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static int has_vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif

int hr_variant_runs(int position) {
#if HR_X86
    const char *isa = tables[position].isa;
    /* These ask XGETBV too: a CPU feature whose registers the operating system does not save is not there. */
    __builtin_cpu_init();
    if (strcmp(isa, "amx") == 0) return has_vnni() && hr_amx_permitted();
    if (strcmp(isa, "avx512_vnni") == 0) return has_vnni();
    if (strcmp(isa, "avx512") == 0) return has_avx512();
    if (strcmp(isa, "avx2") == 0) return has_avx2();
#else
    (void)position;
#endif
    return 1;
}
