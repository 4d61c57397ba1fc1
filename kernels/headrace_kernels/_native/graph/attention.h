/* Attention of a few query rows over one head's keys and values, all f32. */
#ifndef HEADRACE_ATTENTION_H
#define HEADRACE_ATTENTION_H

#include <stddef.h>

/* Query rows are taken so many at a time, or one token's, where its heads are more. */
#define ATTENTION_ROWS 48
#define ATTENTION_MAX_GROUP 256
#define ATTENTION_MAX_DIM 256
#define ATTENTION_KEYS 32 /* keys are scored so many at a time */

/* Tokens `first` ... `first` + `count` - 1 of a sequence; each has `group` query rows, which read the same keys. Token
 * t sees keys 0 ... past + t. A row's answer depends on itself and on the keys it sees, not on the tile it is in. */
typedef struct {
    const float *queries; /* [token][head][dim], scaled; of the group's first head */
    const float *keys, *values; /* [key][dim] */
    float *out;           /* as queries */
    ptrdiff_t first, count, group, stride; /* stride: from one token to the next, of queries and out */
    ptrdiff_t past, num_keys, dim; /* num_keys: that memory is there for; dim: a multiple of 16 */
} hr_attention;

/* Floats of scratch memory that `attend` wants. */
static inline ptrdiff_t hr_attention_scratch(const hr_attention *of) {
    const ptrdiff_t keys = (of->past + of->first + of->count + ATTENTION_KEYS - 1) / ATTENTION_KEYS * ATTENTION_KEYS;
    return of->count * of->group * (keys + 1) + ATTENTION_MAX_DIM * ATTENTION_KEYS + 64;
}

#endif
