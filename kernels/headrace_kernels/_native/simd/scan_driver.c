/* One call: queries in groups that share a pass, a pass in chunks that threads take from each other, then the k best
 * of what each thread kept.
 *
 *     request ─▶ groups of 32 ─▶ pass: chunks × threads ─▶ candidates ─▶ exact scores ─▶ k best
 *                                     (rows, tiles, codes)          └─ too many: the query is scanned exactly
 *
 * Each thread has a share of the rows, so that a catalog which the caches of the cores hold together stays there from
 * one call to the next, and takes from the others' shares when it is through. It first looks at a few rows here and
 * there, which makes a threshold and nothing else, and visits its chunks in a scattered order: where rows are sorted by
 * score, a scan in order would keep them all. After each chunk threads tell each other how far they are.
 */
#include "scan_best.h"
#include "scan_pack.h"
#include "scan_query.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#define FIRST_TRIGGER 128 /* candidates beyond k at which a buffer is first pruned */
#define CHUNK_BYTES (512 * 1024)
#define LEAST_CHUNK_BYTES (64 * 1024)
#define LEAST_SHARE_BYTES (512 * 1024) /* of a thread: less is read before another is awake */
#define QUERIES_AS_READ 16 /* so many queries of a batch take as long as reading the rows does */
#define MOST_CHUNK_ROWS 8192 /* a chunk of rows that all qualify must fit the candidates */
#define CHOSEN_CHUNK 2048    /* rows of an allow-list */
#define LEAST_CODE_SCALE 1e-10 /* below, scores may round to denormals by more than the slack */
#define MOST_TILE_STRIDE 131072 /* longer f32 sums pass the bound's factor */
#define SAMPLE_PIECES 32 /* of SCAN_STEP blocks, over a thread's share */
#define SAMPLE_SHARE 16  /* smaller shares than so many times the sample have none */
#define GROUP_KEYS (1 << 20) /* candidates' buffers of a group stay modest for any k */

/* A thread's chunks: first, ..., first + count - 1, in the order of turn * step % count. */
typedef struct {
    _Alignas(64) _Atomic ptrdiff_t next;
    ptrdiff_t first, count, step;
} share;

typedef struct {
    const hr_scan *kernels;
    const hr_items *items;
    hr_scan_request *request;
    ptrdiff_t first_query;
    int way, num_slots, num_padded;
    hr_queries queries;
    hr_best *bests;   /* [num_slots][num_padded] */
    uint64_t *keys;
    ptrdiff_t chunk, num_chunks;
    share *shares; /* [num_slots] */
    _Atomic int32_t reached[SCAN_QUERIES]; /* the highest threshold of any thread, as an ordered integer */
    _Atomic ptrdiff_t next_query;
    _Atomic int64_t num_candidates;
    _Atomic int short_of_memory;
    uint8_t overflow[SCAN_QUERIES];
} scan_pass;

static ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

static ptrdiff_t common_divisor(ptrdiff_t a, ptrdiff_t b) {
    while (b) {
        const ptrdiff_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static float rounded_down(double x) { /* to f32 */
    if (x < -FLT_MAX) return -INFINITY;
    const float y = (float)x;
    return (double)y > x ? nextafterf(y, -INFINITY) : y;
}

/* ------------------------------------------------------------------------------------------------ the scan */

static void scan_chosen(const scan_pass *pass, ptrdiff_t first, ptrdiff_t last, hr_best *bests) {
    float scores[256];
    for (; first < last; first += 256) {
        const int32_t *rows = pass->request->chosen + first;
        const ptrdiff_t count = smaller(256, last - first);
        for (int q = 0; q < pass->queries.num_queries; ++q) {
            hr_best *best = bests + q;
            pass->kernels->gather(pass->items, pass->queries.exact + q * pass->items->stride, rows, count, scores);
            for (ptrdiff_t i = 0; i < count; ++i)
                if (scores[i] >= best->threshold) hr_best_push(best, rows[i], scores + i, 1);
        }
    }
}

static void scan_chunk(scan_pass *pass, int slot, ptrdiff_t first, ptrdiff_t last) {
    const hr_scan *kernels = pass->kernels;
    const hr_items *items = pass->items;
    const hr_queries *queries = &pass->queries;
    hr_best *bests = pass->bests + slot * pass->num_padded;
    if (pass->request->chosen) {
        scan_chosen(pass, first, last, bests);
    } else if (pass->way == BY_TILES) {
        kernels->tiles(items, queries->tiles, queries->num_queries, first, last, bests);
    } else if (pass->way == BY_CODE_TILES) {
        kernels->code_tiles(items, &queries->batch, first, last, bests);
    } else {
        for (int q = 0; q < queries->num_queries; ++q)
            if (pass->way == BY_CODES) kernels->codes(items, &queries->one_by_one[q], first, last, bests + q);
            else kernels->rows(items, queries->exact + q * items->stride, first, last, bests + q);
    }
}

/* Rows here and there of a share: what they reach the k best reach too. They are met again by the scan. */
static void sample_share(scan_pass *pass, int slot) {
    const share *mine = pass->shares + slot;
    const ptrdiff_t total = pass->items->num_blocks, first = mine->first * pass->chunk;
    const ptrdiff_t count = smaller(mine->count * pass->chunk, total - first);
    const ptrdiff_t step = count / SAMPLE_PIECES / SCAN_STEP * SCAN_STEP;
    if (pass->request->chosen || step < SAMPLE_SHARE * SCAN_STEP) return;
    for (ptrdiff_t piece = 0; piece < SAMPLE_PIECES; ++piece)
        scan_chunk(pass, slot, first + piece * step, first + piece * step + SCAN_STEP);
    for (int q = 0; q < pass->queries.num_queries; ++q) {
        hr_best *best = pass->bests + slot * pass->num_padded + q;
        if (!best->overflow) hr_best_prune(best);
        best->count = 0;
    }
}

/* A threshold that one thread has reached holds for all. */
static void share_thresholds(scan_pass *pass, int slot) {
    for (int q = 0; pass->num_slots > 1 && q < pass->queries.num_queries; ++q) {
        hr_best *best = pass->bests + slot * pass->num_padded + q;
        if (best->overflow) continue;
        const int32_t mine = order_of(best->threshold);
        int32_t reached = atomic_load_explicit(&pass->reached[q], memory_order_relaxed);
        while (mine > reached && !atomic_compare_exchange_weak(&pass->reached[q], &reached, mine)) {}
        if (reached > mine) best->threshold = of_order(reached);
    }
}

static void scan_task(void *context, int slot) {
    scan_pass *pass = context;
    const ptrdiff_t total = pass->request->chosen ? pass->request->num_chosen : pass->items->num_blocks;
    sample_share(pass, slot);
    for (int turn = 0; turn < pass->num_slots; ++turn) {
        share *from = pass->shares + (slot + turn) % pass->num_slots;
        ptrdiff_t taken;
        while ((taken = atomic_fetch_add(&from->next, 1)) < from->count) {
            const ptrdiff_t first = (from->first + taken * from->step % from->count) * pass->chunk;
            share_thresholds(pass, slot);
            scan_chunk(pass, slot, first, smaller(total, first + pass->chunk));
        }
    }
    share_thresholds(pass, slot);
}

/* ------------------------------------------------------------------------------------------------ the answer */

static void write_answer(const hr_scan_request *request, ptrdiff_t query, const uint64_t *keys, ptrdiff_t count) {
    int64_t *indices = request->indices + query * request->k;
    float *scores = request->scores + query * request->k;
    for (ptrdiff_t i = 0; i < request->k; ++i) {
        indices[i] = i < count ? row_of(keys[i]) : -1;
        scores[i] = i < count ? value_of(keys[i]) : NAN;
    }
    request->counts[query] = count;
}

/* Exact scores in place of bounds; those below the least score go. Answers how many are left, or -1. */
static ptrdiff_t score_again(const scan_pass *pass, int q, uint64_t *keys, ptrdiff_t count) {
    int32_t few_rows[512], *rows = few_rows;
    float few_scores[512], *scores = few_scores;
    if (count < 1) return 0;
    if (count > 512) {
        rows = malloc((size_t)count * (sizeof *rows + sizeof *scores));
        if (!rows) return -1;
        scores = (float *)(rows + count);
    }
    for (ptrdiff_t i = 0; i < count; ++i) rows[i] = row_of(keys[i]);
    pass->kernels->gather(pass->items, pass->queries.exact + q * pass->items->stride, rows, count, scores);
    ptrdiff_t kept = 0;
    for (ptrdiff_t i = 0; i < count; ++i)
        if (scores[i] >= pass->request->least) keys[kept++] = key_of(scores[i], rows[i]);
    if (rows != few_rows) free(rows);
    return kept;
}

/* What the score of a row with this value may be at most. */
static double most_score(const scan_pass *pass, int q, uint64_t key) {
    const double value = value_of(key);
    return pass->way == BY_TILES ? value + pass->queries.row_error[q] : value * pass->queries.code_scale[q];
}

/* The candidates with the largest bounds are scored first: their k-th score rules out most of the others, which are
 * then never read. Answers how many exact keys there are, or -1. */
static ptrdiff_t score_candidates(scan_pass *pass, int q, uint64_t *keys, ptrdiff_t count) {
    const ptrdiff_t k = pass->request->k, first = k + k / 2 + 4;
    if (count <= first) {
        atomic_fetch_add(&pass->num_candidates, count);
        return score_again(pass, q, keys, count);
    }
    hr_select_keys(keys, count, first);
    const ptrdiff_t scored = score_again(pass, q, keys, first);
    if (scored < 0) return -1;
    double reached = pass->request->least;
    if (scored >= k) {
        hr_select_keys(keys, scored, k);
        reached = value_of(keys[k - 1]);
    }
    ptrdiff_t open = scored;
    for (ptrdiff_t i = first; i < count; ++i)
        if (most_score(pass, q, keys[i]) >= reached) keys[open++] = keys[i];
    atomic_fetch_add(&pass->num_candidates, first + open - scored);
    const ptrdiff_t more = score_again(pass, q, keys + scored, open - scored);
    return more < 0 ? -1 : scored + more;
}

static int rank_query(scan_pass *pass, int q) {
    const ptrdiff_t k = pass->request->k;
    hr_best merged = pass->bests[q];
    ptrdiff_t count = 0;
    for (int slot = 0; slot < pass->num_slots; ++slot) {
        const hr_best *best = pass->bests + slot * pass->num_padded + q;
        if (best->overflow) {
            pass->overflow[q] = 1;
            return 0;
        }
        count += best->count;
        if (best->threshold > merged.threshold) merged.threshold = best->threshold;
    }
    uint64_t few[512 + 256];
    uint64_t *keys = count <= 512 ? few : malloc((size_t)count * HR_CANDIDATE_BYTES);
    if (!keys) return -1;
    int32_t *floors = (int32_t *)(keys + (count <= 512 ? 512 : count));
    count = 0;
    for (int slot = 0; slot < pass->num_slots; ++slot) {
        const hr_best *best = pass->bests + slot * pass->num_padded + q;
        for (int32_t i = 0; i < best->count; ++i)
            if (value_of(best->keys[i]) >= merged.threshold) {
                floors[count] = best->floors[i];
                keys[count++] = best->keys[i];
            }
    }
    int failed = 0;
    if (merged.width != 0.0) {
        merged.keys = keys;
        merged.floors = floors;
        merged.count = (int32_t)count;
        hr_best_prune(&merged);
        count = score_candidates(pass, q, keys, merged.count);
        if (count < 0) failed = 1;
    }
    if (!failed) {
        if (count > k) hr_select_keys(keys, count, k);
        count = smaller(count, k);
        hr_sort_keys(keys, count);
        write_answer(pass->request, pass->first_query + q, keys, count);
    }
    if (keys != few) free(keys);
    return failed ? -1 : 0;
}

static void rank_task(void *context, int slot) {
    scan_pass *pass = context;
    (void)slot;
    ptrdiff_t q;
    while ((q = atomic_fetch_add(&pass->next_query, 1)) < pass->queries.num_queries)
        if (rank_query(pass, (int)q)) atomic_store(&pass->short_of_memory, 1);
}

/* ------------------------------------------------------------------------------------------------ one pass */

static void plan_chunks(scan_pass *pass) {
    const hr_items *items = pass->items;
    const ptrdiff_t row_bytes = items->stride * (ptrdiff_t)sizeof(float);
    ptrdiff_t total = items->num_blocks, chunk, step = SCAN_STEP, bytes = SCAN_BLOCK * row_bytes;
    if (pass->request->chosen) {
        total = pass->request->num_chosen;
        bytes = row_bytes;
        chunk = CHOSEN_CHUNK;
        step = 1;
    } else {
        if (pass->way == BY_CODES || pass->way == BY_CODE_TILES) bytes = block_bytes(items);
        const ptrdiff_t share = total * bytes / (8 * (ptrdiff_t)pass->num_slots);
        chunk = smaller(larger(share, LEAST_CHUNK_BYTES), CHUNK_BYTES) / bytes;
        chunk = smaller(chunk, MOST_CHUNK_ROWS / SCAN_BLOCK);
    }
    chunk = larger(step, chunk / step * step);
    pass->chunk = chunk;
    pass->num_chunks = (total + chunk - 1) / chunk;
    const ptrdiff_t work = total * bytes / QUERIES_AS_READ * (QUERIES_AS_READ + pass->queries.num_queries);
    const ptrdiff_t most_slots = larger(1, smaller(work / LEAST_SHARE_BYTES, pass->num_chunks));
    pass->num_slots = (int)smaller(pass->num_slots, most_slots);
}

static int begin_shares(scan_pass *pass) {
    void *shares = NULL;
    if (posix_memalign(&shares, 64, (size_t)pass->num_slots * sizeof *pass->shares)) return -1;
    pass->shares = shares;
    for (int slot = 0; slot < pass->num_slots; ++slot) {
        share *mine = pass->shares + slot;
        mine->first = pass->num_chunks * slot / pass->num_slots;
        mine->count = pass->num_chunks * (slot + 1) / pass->num_slots - mine->first;
        mine->step = larger(1, mine->count * 5 / 8);
        while (common_divisor(mine->count, mine->step) > 1) ++mine->step;
        atomic_init(&mine->next, 0);
    }
    for (int q = 0; q < SCAN_QUERIES; ++q) atomic_init(&pass->reached[q], INT32_MIN);
    return 0;
}

static void begin_best(const scan_pass *pass, int q, hr_best *best) {
    const hr_scan_request *request = pass->request;
    const hr_items *items = pass->items;
    const hr_queries *queries = &pass->queries;
    best->k = request->k;
    best->num_rows = items->num_rows;
    best->threshold = request->least;
    best->allowed = request->chosen ? NULL : request->allowed;
    if (q >= queries->num_queries) {
        best->threshold = INFINITY; /* a padded query of a tile */
        return;
    }
    if (request->chosen || pass->way == BY_ROWS) {
        best->width = 0.0;
    } else if (pass->way == BY_TILES) {
        best->width = 2 * queries->row_error[q];
        best->threshold = rounded_down(request->least - queries->row_error[q]);
    } else {
        best->width = 2 * (double)queries->one_by_one[q].slack;
        best->threshold = rounded_down(request->least / queries->code_scale[q]);
        best->scales = (const float *)(items->blocks + 64 * items->num_quads);
        best->scale_stride = block_bytes(items) / (ptrdiff_t)sizeof(float);
        best->overflow = queries->code_scale[q] < LEAST_CODE_SCALE;
    }
    if (request->excluded) {
        const int64_t *starts = request->excluded_starts;
        const ptrdiff_t query = pass->first_query + q;
        best->excluded = request->excluded + (starts ? starts[query] : 0);
        best->num_excluded = starts ? (ptrdiff_t)(starts[query + 1] - starts[query]) : request->num_excluded;
    }
}

static int begin_bests(scan_pass *pass) {
    const int64_t trigger = pass->request->k + FIRST_TRIGGER, capacity = trigger + SCAN_BLOCK;
    const size_t num_bests = (size_t)pass->num_slots * (size_t)pass->num_padded;
    pass->bests = calloc(num_bests, sizeof *pass->bests);
    pass->keys = malloc(num_bests * (size_t)capacity * HR_CANDIDATE_BYTES);
    if (!pass->bests || !pass->keys) return -1;
    for (size_t i = 0; i < num_bests; ++i) {
        hr_best *best = pass->bests + i;
        best->keys = pass->keys + i * (size_t)capacity;
        best->floors = (int32_t *)(pass->keys + num_bests * (size_t)capacity) + i * (size_t)capacity;
        best->trigger = (int32_t)trigger;
        begin_best(pass, (int)(i % (size_t)pass->num_padded), best);
    }
    return 0;
}

static void end_pass(scan_pass *pass) {
    for (ptrdiff_t i = 0; pass->bests && i < (ptrdiff_t)pass->num_slots * pass->num_padded; ++i)
        if (pass->bests[i].grown) free(pass->bests[i].keys);
    free(pass->bests);
    free(pass->keys);
    free(pass->shares);
    hr_queries_end(&pass->queries);
}

static int run_pass(scan_pass *pass, int count) {
    const hr_scan_request *request = pass->request;
    const float *rows = request->queries + pass->first_query * pass->items->dimension;
    pass->num_slots = request->num_threads;
    if (hr_queries_make(&pass->queries, pass->kernels, pass->items, rows, count, request->normalize, pass->way))
        return -1;
    pass->num_padded = pass->queries.num_tiles * SCAN_LANE;
    plan_chunks(pass);
    if (begin_shares(pass) || begin_bests(pass)) return -1;
    hr_pool_run(pass->num_slots, scan_task, pass);
    hr_pool_run(count > 8 ? pass->num_slots : 1, rank_task, pass);
    return atomic_load(&pass->short_of_memory) ? -1 : 0;
}

/* ------------------------------------------------------------------------------------------------ the request */

static int way_of(const hr_scan *kernels, const hr_items *items, const hr_scan_request *request, int count) {
    if (request->chosen) return BY_ROWS;
    const int codes = request->use_codes && items->blocks;
    if (codes && count > 1 && kernels->code_tiles) return BY_CODE_TILES;
    if (codes && (count == 1 || request->use_codes > 1)) return BY_CODES;
    return count > 1 && items->stride <= MOST_TILE_STRIDE ? BY_TILES : BY_ROWS;
}

static int scan_group(const hr_scan *kernels, const hr_items *items, hr_scan_request *request, ptrdiff_t first,
                      int count, int way) {
    scan_pass pass = {.kernels = kernels, .items = items, .request = request, .first_query = first, .way = way};
    int failed = run_pass(&pass, count);
    request->num_candidates += atomic_load(&pass.num_candidates);
    uint8_t overflow[SCAN_QUERIES];
    memcpy(overflow, pass.overflow, sizeof overflow);
    end_pass(&pass);
    for (int q = 0; !failed && q < count; ++q)
        if (overflow[q]) {
            request->num_fallbacks += 1;
            failed = scan_group(kernels, items, request, first + q, 1, BY_ROWS);
        }
    return failed;
}

static int run(const hr_scan *kernels, const hr_items *items, hr_scan_request *request) {
    const ptrdiff_t group = larger(1, smaller(SCAN_QUERIES, GROUP_KEYS / (request->k + FIRST_TRIGGER)));
    for (ptrdiff_t first = 0; first < request->num_queries; first += group) {
        const int count = (int)smaller(group, request->num_queries - first);
        if (scan_group(kernels, items, request, first, count, way_of(kernels, items, request, count))) return -1;
    }
    return 0;
}

const hr_scan_driver hr_scanning = {hr_pack, hr_release, run, hr_row_norm};
