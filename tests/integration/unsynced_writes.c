/* A disk that forgets what was not synced, as a loss of power would: preloaded into a process, it keeps every write to
   a regular file under UNSYNCED_DIR in a journal of old bytes until that file is synced, and puts the old bytes back
   when the process ends itself by SIGKILL through `raise_power_loss`, which SIGUSR1 calls.

   Covered: pwrite, pwrite64, write, ftruncate, ftruncate64, fsync, fdatasync; rename keeps its effect, the renamed
   file's bytes are lost all the same. SQLite's log index (-shm) is mapped
   memory, which a restart rebuilds. Undo runs newest first, so the file is as it was at its last sync. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

struct undo {
    struct undo *older;
    dev_t device;
    ino_t inode;
    char path[512];
    off_t offset;   /* of the old bytes */
    off_t old_size; /* of the file before */
    size_t count;
    unsigned char bytes[];
};

static struct undo *newest;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[512];
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_rename)(const char *, const char *);

static void resolve(void) {
    if (real_pwrite) return;
    real_write = dlsym(RTLD_NEXT, "write");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_rename = dlsym(RTLD_NEXT, "rename");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
}

static int watched(int fd, struct stat *st, char *path) {
    char link[64];
    if (!root[0] || fstat(fd, st) || !S_ISREG(st->st_mode)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 511);
    if (length <= 0) return 0;
    path[length] = 0;
    return !strncmp(path, root, strlen(root)) && !strstr(path, "-shm");
}

/* Keeps the old bytes of [offset, offset + count), and the old size. */
static void keep(int fd, off_t offset, size_t count) {
    struct stat st;
    char path[512];
    if (!watched(fd, &st, path)) return;
    size_t held = offset < st.st_size ? (size_t)(st.st_size - offset) : 0;
    if (held > count) held = count;
    struct undo *undo = malloc(sizeof *undo + held);
    if (!undo) abort();
    undo->device = st.st_dev;
    undo->inode = st.st_ino;
    strcpy(undo->path, path);
    undo->offset = offset;
    undo->old_size = st.st_size;
    undo->count = held;
    if (held) { /* the descriptor may be open for writing alone */
        int in = open(path, O_RDONLY | O_CLOEXEC);
        if (in < 0 || pread(in, undo->bytes, held, offset) != (ssize_t)held) abort();
        close(in);
    }
    undo->older = newest;
    newest = undo;
}

static void settle(int fd) {
    struct stat st;
    char path[512];
    if (!watched(fd, &st, path)) return;
    for (struct undo **link = &newest; *link;) {
        struct undo *undo = *link;
        if (undo->device == st.st_dev && undo->inode == st.st_ino) {
            *link = undo->older;
            free(undo);
        } else {
            link = &undo->older;
        }
    }
}

static void lose_power(int signal_number) {
    (void)signal_number;
    /* Nobody writes while bytes go back; a thread inside a write has finished it or has not begun it. */
    pthread_mutex_lock(&lock);
    for (struct undo *undo = newest; undo; undo = undo->older) {
        int out = open(undo->path, O_WRONLY | O_CLOEXEC);
        struct stat st;
        if (out < 0) continue;
        if (!fstat(out, &st) && st.st_ino == undo->inode) {
            if (undo->count && real_pwrite(out, undo->bytes, undo->count, undo->offset) < 0) abort();
            if (real_ftruncate(out, undo->old_size)) abort();
        }
        close(out);
    }
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static void *wait_for_signal(void *set) {
    int number;
    sigwait(set, &number);
    lose_power(number);
    return NULL;
}

__attribute__((constructor)) static void start(void) {
    resolve();
    const char *directory = getenv("UNSYNCED_DIR");
    if (!directory || !realpath(directory, root)) return;
    /* A thread of its own takes the signal: undoing inside a handler could wait for a lock its own thread holds. */
    static sigset_t set;
    pthread_t thread;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_create(&thread, NULL, wait_for_signal, &set);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t offset) {
    resolve();
    pthread_mutex_lock(&lock);
    keep(fd, offset, count);
    ssize_t answer = real_pwrite(fd, bytes, count, offset);
    pthread_mutex_unlock(&lock);
    return answer;
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) { return pwrite64(fd, bytes, count, offset); }

ssize_t write(int fd, const void *bytes, size_t count) {
    resolve();
    off_t offset = lseek(fd, 0, SEEK_CUR);
    if (offset < 0) return real_write(fd, bytes, count);
    pthread_mutex_lock(&lock);
    keep(fd, offset, count);
    ssize_t answer = real_write(fd, bytes, count);
    pthread_mutex_unlock(&lock);
    return answer;
}

int ftruncate64(int fd, off_t size) {
    struct stat st;
    resolve();
    pthread_mutex_lock(&lock);
    if (!fstat(fd, &st)) keep(fd, size < st.st_size ? size : st.st_size, size < st.st_size ? (size_t)(st.st_size - size) : 0);
    int answer = real_ftruncate(fd, size);
    pthread_mutex_unlock(&lock);
    return answer;
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int fsync(int fd) {
    resolve();
    pthread_mutex_lock(&lock);
    int answer = real_fsync(fd);
    if (!answer) settle(fd);
    pthread_mutex_unlock(&lock);
    return answer;
}

int fdatasync(int fd) {
    resolve();
    pthread_mutex_lock(&lock);
    int answer = real_fdatasync(fd);
    if (!answer) settle(fd);
    pthread_mutex_unlock(&lock);
    return answer;
}

int rename(const char *from, const char *to) {
    char old_path[PATH_MAX], new_path[PATH_MAX];
    resolve();
    pthread_mutex_lock(&lock);
    int known = root[0] && realpath(from, old_path);
    int answer = real_rename(from, to);
    if (!answer && known && realpath(to, new_path) && strlen(new_path) < sizeof newest->path)
        for (struct undo *undo = newest; undo; undo = undo->older)
            if (!strcmp(undo->path, old_path)) strcpy(undo->path, new_path);
    pthread_mutex_unlock(&lock);
    return answer;
}
