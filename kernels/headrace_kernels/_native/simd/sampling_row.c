/* One row from logits to a token: adjust, keep the likeliest, draw. Rows are independent; threads take them in turn.
 *
 * A candidate is a position in `indices`, which ascend; its key orders candidates by logit and, among equal logits, by
 * index. Cuts answer the least key that stays, so that no list is sorted but the few of the top log-probabilities.
 */
#include "kernels.h"
#include "score_key.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>

#define NUM_BUCKETS 256
#define FEW 24

typedef struct {
    float *row;                   /* the logits after bias, penalties and mask */
    float *tops, *tops_of_tops;
    float *sums;                  /* of each group's weights */
    float *weights;               /* of candidates */
    int32_t *indices;             /* of candidates */
    uint64_t *keys;
} scratch;

static ptrdiff_t rounded_up(ptrdiff_t bytes) { return (bytes + 63) & ~(ptrdiff_t)63; }

/* Lays `scratch` out at `base` and answers its size: the same code measures and places. */
static ptrdiff_t lay_out(scratch *out, unsigned char *base, ptrdiff_t v) {
    const ptrdiff_t room = v + SAMPLING_GROUP + SAMPLING_LANES; /* a row's tops may be more than its tokens */
    const ptrdiff_t tops = num_tops(v);
    ptrdiff_t used = 0;
#define PLACE(field, type, count)                        \
    do {                                                 \
        if (base) out->field = (type *)(base + used);    \
        used += rounded_up((count) * (ptrdiff_t)sizeof(type)); \
    } while (0)
    PLACE(keys, uint64_t, room);
    PLACE(indices, int32_t, room);
    PLACE(weights, float, room);
    PLACE(row, float, v);
    PLACE(tops, float, tops);
    PLACE(tops_of_tops, float, num_tops(tops));
    PLACE(sums, float, num_groups(v));
#undef PLACE
    return used;
}

ptrdiff_t hr_sample_scratch_bytes(ptrdiff_t v) { return lay_out(NULL, NULL, v); }

static float score_of(uint64_t key) {
    uint32_t bits = (uint32_t)(key >> 32);
    float score;
    bits ^= bits >> 31 ? 0x80000000u : 0xffffffffu;
    memcpy(&score, &bits, sizeof score);
    return score;
}

static double mass_of(const float *weights, uint64_t key) { return weights ? (double)weights[index_of(key)] : 1.0; }

/* The key at which keys, taken largest first, have gathered mass `target`; the least of all where they never do.
 * Radix selection: buckets by the leading bits in which keys still differ, then on within one. Keys are lost. */
static uint64_t key_at(uint64_t *keys, ptrdiff_t n, const float *weights, double target) {
    double mass = 0.0;
    HR_CHECK(n >= 1);
    while (n > FEW) {
        uint64_t least = keys[0], most = keys[0];
        for (ptrdiff_t i = 1; i < n; ++i) {
            least = keys[i] < least ? keys[i] : least;
            most = keys[i] > most ? keys[i] : most;
        }
        const int bits = 64 - __builtin_clzll(most - least), shift = bits > 8 ? bits - 8 : 0; /* keys are distinct */
        double bucket[NUM_BUCKETS] = {0};
        for (ptrdiff_t i = 0; i < n; ++i) bucket[(keys[i] - least) >> shift] += mass_of(weights, keys[i]);
        uint64_t hit = (most - least) >> shift;
        while (hit && mass + bucket[hit] < target) mass += bucket[hit--];
        ptrdiff_t kept = 0;
        for (ptrdiff_t i = 0; i < n; ++i) {
            const uint64_t key = keys[i];
            keys[kept] = key;
            kept += (key - least) >> shift == hit;
        }
        n = kept;
    }
    for (ptrdiff_t i = 1; i < n; ++i) { /* largest first */
        const uint64_t key = keys[i];
        ptrdiff_t at = i;
        for (; at > 0 && keys[at - 1] < key; --at) keys[at] = keys[at - 1];
        keys[at] = key;
    }
    ptrdiff_t at = 0;
    while ((mass += mass_of(weights, keys[at])) < target && at + 1 < n) ++at;
    return keys[at];
}

/* A bar that at least `wanted` logits reach and few more: the wanted-th largest of the tops; -inf if these are fewer. */
static float bar_for(const hr_sampling *kernels, const float *tops, ptrdiff_t n, ptrdiff_t wanted, scratch *s) {
    const ptrdiff_t second = num_tops(n);
    if (wanted > n) return -INFINITY;
    if (wanted <= second && n > 4 * SAMPLING_GROUP) { /* the same again, for the tops themselves */
        kernels->tops(tops, n, s->tops_of_tops);
        for (ptrdiff_t i = 0; i < second; ++i) s->keys[i] = key_of(s->tops_of_tops[i], i);
        const float bar = score_of(key_at(s->keys, second, NULL, (double)wanted));
        n = kernels->collect(tops, n, s->tops_of_tops, bar, s->indices);
        for (ptrdiff_t i = 0; i < n; ++i) s->keys[i] = key_of(tops[s->indices[i]], i);
    } else {
        for (ptrdiff_t i = 0; i < n; ++i) s->keys[i] = key_of(tops[i], i);
    }
    return score_of(key_at(s->keys, n, NULL, (double)wanted));
}

/* A bar that every logit of at least this weight reaches, and few others: the exponential's error is allowed for. */
static float bar_of_weight(double weight, float peak, float inverse) {
    if (!(weight > 0.0)) return -INFINITY;
    const double bar = (double)peak + (log(weight) * (1.0 + 1e-5) - 1e-3) / (double)inverse;
    return bar < -(double)FLT_MAX ? -INFINITY : nextafterf((float)bar, -INFINITY);
}

/* The first place at which the sum passes `target`, else the last that added to it; *before is the sum up to there. */
static ptrdiff_t first_above(const float *x, ptrdiff_t n, double target, double *before) {
    double sum = 0.0;
    ptrdiff_t last = 0;
    *before = 0.0;
    for (ptrdiff_t i = 0; i < n; ++i) {
        const double next = sum + (double)x[i];
        if (next != sum) {
            last = i;
            *before = sum;
        }
        sum = next;
        if (sum > target) return i;
    }
    return last;
}

static double sum_of(const float *x, ptrdiff_t n) {
    double sum = 0.0;
    for (ptrdiff_t i = 0; i < n; ++i) sum += (double)x[i];
    return sum;
}

static int is_adjusted(const hr_sample_request *r) { return r->num_biases || r->num_counted || r->allowed; }

static void adjust(const hr_sampling *kernels, const hr_sample_request *r, float *row) {
    memcpy(row, r->logits, (size_t)r->num_tokens * sizeof *row);
    for (ptrdiff_t i = 0; i < r->num_biases; ++i) row[r->bias_tokens[i]] += r->bias_values[i];
    for (ptrdiff_t i = 0; i < r->num_counted; ++i) {
        float x = row[r->counted_tokens[i]];
        x = x > 0.0f ? x / r->repetition : x * r->repetition;
        x -= r->frequency * (float)r->counts[i];
        if (r->counts[i] > 0) x -= r->presence;
        row[r->counted_tokens[i]] = x;
    }
    if (r->allowed) kernels->forbid(row, r->num_tokens, r->allowed);
}

/* Keeps the candidates from the one at which keys, largest first, have gathered `target`; answers how many. */
static ptrdiff_t cut(const float *row, ptrdiff_t n, const float *weights, double target, scratch *s) {
    for (ptrdiff_t i = 0; i < n; ++i) s->keys[i] = key_of(row[s->indices[i]], i);
    const uint64_t least = key_at(s->keys, n, weights, target);
    ptrdiff_t kept = 0;
    for (ptrdiff_t i = 0; i < n; ++i) {
        const int stays = key_of(row[s->indices[i]], i) >= least;
        s->indices[kept] = s->indices[i];
        s->weights[kept] = s->weights[i];
        kept += stays;
    }
    return kept;
}

static int32_t draw_any(const hr_sampling *kernels, const float *row, ptrdiff_t v, float peak, float inverse,
                        double uniform, scratch *s) {
    double before;
    const ptrdiff_t groups = num_groups(v);
    const double target = uniform * sum_of(s->sums, groups);
    const ptrdiff_t start = first_above(s->sums, groups, target, &before) * SAMPLING_GROUP;
    const ptrdiff_t members = v - start < SAMPLING_GROUP ? v - start : SAMPLING_GROUP;
    memcpy(s->weights, row + start, (size_t)members * sizeof *row);
    kernels->weights(s->weights, members, peak, inverse);
    return (int32_t)(start + first_above(s->weights, members, target - before, &before));
}

/* `summed`: s->sums holds the weights of this row at temperature 1 already. */
static int32_t draw(const hr_sampling *kernels, const hr_sample_request *r, const float *row, float peak, int summed,
                    scratch *s) {
    const ptrdiff_t v = r->num_tokens;
    const double wanted = 1.0 / r->temperature;
    const float inverse = wanted < (double)FLT_MAX ? (float)wanted : FLT_MAX;
    const int by_rank = 0 < r->top_k && r->top_k < v, by_share = r->top_p < 1.0, by_ratio = r->min_p > 0.0;
    if (!by_rank && (by_share || !by_ratio) && !(summed && inverse == 1.0f))
        kernels->sums(row, v, peak, inverse, s->sums);
    if (!by_rank && !by_share && !by_ratio) return draw_any(kernels, row, v, peak, inverse, r->uniform, s);

    double total = 0.0;
    float bar;
    if (by_rank) {
        bar = bar_for(kernels, s->tops, num_tops(v), r->top_k, s);
    } else {
        double least = r->min_p;
        if (by_share) { /* what is below this weight has no more than 1 - top_p together; 4e-6 bounds the sums' error */
            total = sum_of(s->sums, num_groups(v));
            const double share = (1.0 - r->top_p - 4e-6) * 0.999 * total / (double)v;
            least = share > least ? share : least;
        }
        bar = bar_of_weight(least, peak, inverse);
    }
    ptrdiff_t n = kernels->collect(row, v, s->tops, bar, s->indices);
    if (by_rank && n > r->top_k) n = cut(row, n, NULL, (double)r->top_k, s);
    for (ptrdiff_t i = 0; i < n; ++i) s->weights[i] = row[s->indices[i]];
    kernels->weights(s->weights, n, peak, inverse);
    if (by_share) {
        if (by_rank) total = sum_of(s->weights, n);
        n = cut(row, n, s->weights, r->top_p * total, s);
    }
    if (by_ratio) {
        const float least = (float)r->min_p;
        ptrdiff_t kept = 0;
        for (ptrdiff_t i = 0; i < n; ++i) {
            const int stays = s->weights[i] >= least;
            s->indices[kept] = s->indices[i];
            s->weights[kept] = s->weights[i];
            kept += stays;
        }
        n = kept;
    }
    double before;
    return s->indices[first_above(s->weights, n, r->uniform * sum_of(s->weights, n), &before)];
}

/* Puts `key` at `hole` or below it in a heap whose root is the least. */
static void sift_down(uint64_t *heap, ptrdiff_t n, ptrdiff_t hole, uint64_t key) {
    for (ptrdiff_t child; (child = 2 * hole + 1) < n; hole = child) {
        child += child + 1 < n && heap[child + 1] < heap[child];
        if (heap[child] >= key) break;
        heap[hole] = heap[child];
    }
    heap[hole] = key;
}

static void name_likeliest(const hr_sampling *kernels, const hr_sample_request *r, float peak, double log_total,
                           scratch *s) {
    const ptrdiff_t wanted = r->top_logprobs < r->num_tokens ? r->top_logprobs : r->num_tokens;
    if (wanted < 1) return;
    const float *row = r->logits;
    const float bar = bar_for(kernels, s->tops, num_tops(r->num_tokens), wanted, s);
    ptrdiff_t n = kernels->collect(row, r->num_tokens, s->tops, bar, s->indices);
    n = cut(row, n, NULL, (double)wanted, s);
    for (ptrdiff_t i = 0; i < n; ++i) s->keys[i] = key_of(row[s->indices[i]], s->indices[i]);
    for (ptrdiff_t i = n / 2 - 1; i >= 0; --i) sift_down(s->keys, n, i, s->keys[i]);
    for (ptrdiff_t end = n - 1; end > 0; --end) { /* the least goes last */
        const uint64_t key = s->keys[end];
        s->keys[end] = s->keys[0];
        sift_down(s->keys, end, 0, key);
    }
    for (ptrdiff_t i = 0; i < n; ++i) {
        r->top_tokens[i] = (int32_t)index_of(s->keys[i]);
        r->top_values[i] = (float)((double)row[r->top_tokens[i]] - (double)peak - log_total);
    }
}

static int sample_row(const hr_sampling *kernels, hr_sample_request *r, scratch *s) {
    const ptrdiff_t v = r->num_tokens;
    const float *row = r->logits;
    const float model_peak = kernels->tops(row, v, s->tops);
    float peak = model_peak;
    if (peak != peak) return SAMPLED_NOT_FINITE;
    if (peak == -INFINITY) return SAMPLED_NOTHING_ALLOWED;
    double log_total = NAN;
    if (r->top_logprobs >= 0) {
        kernels->sums(row, v, peak, 1.0f, s->sums);
        log_total = log(sum_of(s->sums, num_groups(v)));
        name_likeliest(kernels, r, peak, log_total, s);
    }
    if (is_adjusted(r)) {
        adjust(kernels, r, s->row);
        row = s->row;
        peak = kernels->tops(row, v, s->tops);
        if (peak != peak) return SAMPLED_NOT_FINITE;
        if (peak == -INFINITY) return SAMPLED_NOTHING_ALLOWED;
    }
    if (r->temperature == 0.0) {
        kernels->collect(row, v, s->tops, peak, s->indices);
        r->token = s->indices[0];
    } else {
        r->token = draw(kernels, r, row, peak, r->top_logprobs >= 0 && row == r->logits, s);
    }
    r->logprob = (float)((double)r->logits[r->token] - (double)model_peak - log_total);
    return SAMPLED;
}

typedef struct {
    const hr_sampling *kernels;
    hr_sample_request *requests;
    ptrdiff_t n, stride;
    unsigned char *scratch;
    _Atomic ptrdiff_t next;
} work;

static void sample_some(void *context, int slot) {
    work *todo = context;
    for (ptrdiff_t i; (i = atomic_fetch_add(&todo->next, 1)) < todo->n;) {
        scratch s;
        hr_sample_request *request = todo->requests + i;
        lay_out(&s, todo->scratch + slot * todo->stride, request->num_tokens);
        request->status = sample_row(todo->kernels, request, &s);
    }
}

void hr_sample_rows(const hr_sampling *kernels, hr_sample_request *requests, ptrdiff_t n, int num_threads,
                    unsigned char *scratch, ptrdiff_t stride) {
    work todo = {kernels, requests, n, stride, scratch, 0};
    hr_pool_run(num_threads, sample_some, &todo);
}
