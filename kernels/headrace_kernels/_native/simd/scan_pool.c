/* Threads that wait for scans: they spin briefly, since the next query often follows at once, and then park.
 *
 * One job at a time. Its state is one word, generation | running | claimable, so that a slot is claimed by one
 * compare-and-swap: a worker that comes late finds nothing left to claim, and nobody waits for one that is not
 * scheduled. A caller that finds the pool taken by another runs its job alone.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getcpu, CPU sets */
#endif
#include "scan.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#define MAX_WORKERS 255
#define SPIN_NS 40000
#define FEW_CPUS 8 /* with more of them one is idle, and a woken worker gets it */
#define CLAIMABLE(state) ((state) & 0xffffu)
#define RUNNING(state) ((state) >> 16 & 0xffffu)
#define ONE_RUNNING ((uint64_t)1 << 16)
#define GENERATION ((uint64_t)1 << 32)

static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER; /* of the pool, for one job */
static pthread_mutex_t parking = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static _Atomic uint64_t state;
static _Atomic int num_parked;
static struct {
    pthread_t thread;
    int avoided; /* the CPU that it may not run on, or -1 */
} workers[MAX_WORKERS];
static int num_workers;
static hr_task current_task;
static void *current_context;
static pthread_once_t fork_guard = PTHREAD_ONCE_INIT;

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Claims a slot and runs it; 0 when there was none. */
static int work(void) {
    uint64_t seen = atomic_load(&state);
    while (CLAIMABLE(seen)) {
        if (!atomic_compare_exchange_weak(&state, &seen, seen - 1 + ONE_RUNNING)) continue;
        current_task(current_context, (int)CLAIMABLE(seen));
        atomic_fetch_sub(&state, ONE_RUNNING);
        return 1;
    }
    return 0;
}

static void park(void) {
    pthread_mutex_lock(&parking);
    atomic_fetch_add(&num_parked, 1);
    while (!CLAIMABLE(atomic_load(&state))) pthread_cond_wait(&wake, &parking);
    atomic_fetch_sub(&num_parked, 1);
    pthread_mutex_unlock(&parking);
}

/* A worker that is woken where the caller runs begins when the caller has ended. Where other programs keep the CPUs
 * busy the system wakes it there time and again, so workers are kept off the CPU that the caller is on. */
static void leave_cpu_to_caller(void) {
#ifdef __linux__
    const int mine = sched_getcpu();
    cpu_set_t usable;
    int known = 0;
    for (int i = 0; mine >= 0 && i < num_workers; ++i) {
        if (workers[i].avoided == mine) continue;
        if (!known) {
            if (sched_getaffinity(0, sizeof usable, &usable)) return;
            CPU_CLR(mine, &usable);
            if (CPU_COUNT(&usable) < 1 || CPU_COUNT(&usable) >= FEW_CPUS) return;
            known = 1;
        }
        if (!pthread_setaffinity_np(workers[i].thread, sizeof usable, &usable)) workers[i].avoided = mine;
    }
#endif
}

static void *worker(void *unused) {
    (void)unused;
    for (;;) {
        const int64_t until = now_ns() + SPIN_NS;
        int worked = 0;
        while (!(worked = work()) && now_ns() < until)
            for (int i = 0; i < 16; ++i) relax();
        if (!worked) park();
    }
    return NULL;
}

/* The child of a fork has none of the threads; it starts its own when it first needs them. */
static void forget_workers(void) {
    pthread_mutex_init(&owner, NULL);
    pthread_mutex_init(&parking, NULL);
    pthread_cond_init(&wake, NULL);
    atomic_store(&state, 0);
    atomic_store(&num_parked, 0);
    num_workers = 0;
}

static void guard_forks(void) { pthread_atfork(NULL, NULL, forget_workers); }

static void start_workers(int wanted) {
    pthread_attr_t attributes;
    if (wanted > MAX_WORKERS) wanted = MAX_WORKERS;
    if (num_workers >= wanted || pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 512 * 1024);
    for (; num_workers < wanted; ++num_workers) {
        if (pthread_create(&workers[num_workers].thread, &attributes, worker, NULL)) break; /* fewer do the whole job */
        workers[num_workers].avoided = -1;
    }
    pthread_attr_destroy(&attributes);
}

void hr_pool_run(int num_slots, hr_task task, void *context) {
    if (num_slots < 2) {
        task(context, 0);
        return;
    }
    pthread_once(&fork_guard, guard_forks);
    if (pthread_mutex_trylock(&owner)) {
        task(context, 0);
        return;
    }
    start_workers(num_slots - 1);
    leave_cpu_to_caller();
    current_task = task;
    current_context = context;
    const uint64_t generation = (atomic_load(&state) & ~(GENERATION - 1)) + GENERATION;
    atomic_store(&state, generation | (uint64_t)(num_slots - 1));
    if (atomic_load(&num_parked)) {
        /* Who holds the lock has seen the state or waits by now; woken without it, a worker need not wait for it. */
        pthread_mutex_lock(&parking);
        pthread_mutex_unlock(&parking);
        for (int i = 1; i < num_slots; ++i) pthread_cond_signal(&wake);
    }
    task(context, 0);
    uint64_t seen = atomic_load(&state);
    while (!atomic_compare_exchange_weak(&state, &seen, seen & ~(uint64_t)0xffff)) {}
    for (int turns = 0; RUNNING(atomic_load(&state)); ++turns)
        if (turns < 4000) relax();
        else sched_yield();
    pthread_mutex_unlock(&owner);
}
