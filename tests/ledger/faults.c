/* Preloaded into a test process: sees every write, sync, truncation, renaming and removal below one
 * folder, and at the chosen one kills the process, tears the write, or lets the call fail.
 * With a log, it records all of them, for the simulation of power cuts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { NOTHING, KILL, TEAR, FAIL_IO, FAIL_SPACE };

static char folder[PATH_MAX];
static long target, seen;
static int action, tearing, journal = -1;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static ssize_t plain_write(int fd, const void *data, size_t size) {
    REAL(write);
    return real(fd, data, size);
}

void faults_arm(const char *below, long at, int what, int log) {
    snprintf(folder, sizeof folder, "%s", below);
    target = at;
    action = what;
    journal = log;
    seen = 0;
}

long faults_seen(void) { return seen; }

static int within(int fd, const char *path, char *found) {
    char link[64];
    ssize_t length;
    if (!folder[0]) return 0;
    if (path) {
        snprintf(found, PATH_MAX, "%s", path);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        length = readlink(link, found, PATH_MAX - 1);
        if (length < 0) return 0;
        found[length] = 0;
    }
    return strncmp(found, folder, strlen(folder)) == 0;
}

static void record(char kind, const char *path, int64_t at, const void *data, int64_t size) {
    int32_t length = (int32_t)strlen(path);
    if (journal < 0) return;
    plain_write(journal, &kind, 1);
    plain_write(journal, &length, sizeof length);
    plain_write(journal, path, (size_t)length);
    plain_write(journal, &at, sizeof at);
    plain_write(journal, &size, sizeof size);
    if (data) plain_write(journal, data, (size_t)size);
}

/* Returns the errno to fail with, or 0 to go on. Does not return if it kills. */
static int step(char kind, int fd, const char *path, int64_t at, const void *data, int64_t size) {
    char found[PATH_MAX];
    if (tearing || !within(fd, path, found)) return 0;
    seen++;
    record(kind, found, at, data, size);
    if (seen != target) return 0;
    if (action == TEAR && data) {
        tearing = 1;
        if (at >= 0) pwrite64(fd, data, (size_t)size / 2, at);
        else plain_write(fd, data, (size_t)size / 2);
    }
    if (action == KILL || action == TEAR) {
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
    return action == FAIL_IO ? EIO : action == FAIL_SPACE ? ENOSPC : 0;
}

#define GUARD(...) \
    do { \
        int error = step(__VA_ARGS__); \
        if (error) { errno = error; return -1; } \
    } while (0)

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    GUARD('w', fd, NULL, at, data, (int64_t)size);
    return real(fd, data, size, at);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    GUARD('w', fd, NULL, at, data, (int64_t)size);
    return real(fd, data, size, at);
}

ssize_t write(int fd, const void *data, size_t size) {
    GUARD('a', fd, NULL, -1, data, (int64_t)size);
    return plain_write(fd, data, size);
}

int fsync(int fd) {
    REAL(fsync);
    GUARD('s', fd, NULL, 0, NULL, 0);
    return real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    GUARD('s', fd, NULL, 0, NULL, 0);
    return real(fd);
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    GUARD('t', fd, NULL, size, NULL, 0);
    return real(fd, size);
}

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    GUARD('t', fd, NULL, size, NULL, 0);
    return real(fd, size);
}

int unlink(const char *path) {
    REAL(unlink);
    GUARD('u', -1, path, 0, NULL, 0);
    return real(path);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    GUARD('r', -1, to, 0, NULL, 0);
    return real(from, to);
}
