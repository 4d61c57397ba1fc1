/* Drawing a token from a row of logits: what the kernels of each variant share with the code that drives them.
 *
 * The vocabulary is never sorted. A row falls into groups of 256 tokens, and a group into sixteen lanes (lane l has its
 * tokens l, l + 16, ...); the *tops* are the largest logit of each lane. The k-th largest top is a bar that at least k
 * tokens reach, and few more do: they alone are looked at singly.
 *
 * Every variant gives the same bits: weights are the unfused exponential of (logit - peak) * inverse, a group's sum adds
 * each lane in order and then folds the lanes in halves, and what follows is plain C on f64, written once.
 */
#ifndef HEADRACE_SAMPLING_H
#define HEADRACE_SAMPLING_H

#include <stddef.h>
#include <stdint.h>

#define SAMPLING_GROUP 256
#define SAMPLING_LANES 16

/* v below is a number of tokens, num_tops(v) and num_groups(v) what it makes. */
static inline ptrdiff_t num_groups(ptrdiff_t v) { return (v + SAMPLING_GROUP - 1) / SAMPLING_GROUP; }
static inline ptrdiff_t num_tops(ptrdiff_t v) { return num_groups(v) * SAMPLING_LANES; }

enum { SAMPLED = 0, SAMPLED_NOT_FINITE = 1, SAMPLED_NOTHING_ALLOWED = 2 };

typedef struct {
    const float *logits;
    ptrdiff_t num_tokens; /* at least 1 */
    double temperature, top_p, min_p, uniform;
    ptrdiff_t top_k;
    const uint32_t *allowed; /* or NULL */
    const int32_t *bias_tokens;
    const float *bias_values;
    ptrdiff_t num_biases;
    const int32_t *counted_tokens;
    const int32_t *counts;
    ptrdiff_t num_counted;
    float repetition, frequency, presence;
    ptrdiff_t top_logprobs; /* -1: no log-probabilities */
    int32_t status, token;
    float logprob;
    int32_t *top_tokens; /* min(top_logprobs, num_tokens) of them */
    float *top_values;
} hr_sample_request;

typedef struct hr_sampling {
    /* Writes the tops, lanes without tokens being -inf; answers the largest, or NaN for a row with NaN or +inf. */
    float (*tops)(const float *row, ptrdiff_t v, float *tops);
    /* Writes each group's sum of exp((row - peak) * inverse); inverse is finite and above 0, peak the row's largest. */
    void (*sums)(const float *row, ptrdiff_t v, float peak, float inverse, float *sums);
    /* exp((x - peak) * inverse), in place. */
    void (*weights)(float *x, ptrdiff_t n, float peak, float inverse);
    /* Indices of logits >= bar, ascending; answers how many. Writes up to 15 places past them. */
    ptrdiff_t (*collect)(const float *row, ptrdiff_t v, const float *tops, float bar, int32_t *indices);
    /* -inf where the bit is clear. */
    void (*forbid)(float *row, ptrdiff_t v, const uint32_t *allowed);
    /* Samples n rows by up to num_threads threads; each thread has `stride` bytes of scratch, aligned to 8. */
    void (*run)(const struct hr_sampling *kernels, hr_sample_request *requests, ptrdiff_t n, int num_threads,
                unsigned char *scratch, ptrdiff_t stride);
    /* Scratch that a thread needs for rows of v tokens, a multiple of 64. */
    ptrdiff_t (*scratch_bytes)(ptrdiff_t v);
} hr_sampling;

void hr_sample_rows(const hr_sampling *kernels, hr_sample_request *requests, ptrdiff_t n, int num_threads,
                    unsigned char *scratch, ptrdiff_t stride);
ptrdiff_t hr_sample_scratch_bytes(ptrdiff_t v);

#endif
