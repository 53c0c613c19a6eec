/* Counts what a process changes on disk below $CRASH_BELOW, and kills it or fills the disk at operation number n.

   Loaded by LD_PRELOAD; idle until arm() is called, so that a warmed process can fork one child for each n. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int armed, counted, at;   /* at: the operation that is hit, 0 for none */
static int full;                 /* 1: from there on the disk is full, 0: killed before the operation */
static char below[4096], journal[4096];

void arm(const char *folder, int n, int enospc, const char *list) {
    strncpy(below, folder, sizeof below - 1);
    strncpy(journal, list, sizeof journal - 1);
    counted = 0, at = n, full = enospc, armed = 1;
}

int count(void) { return counted; }

static int inside(int folder, const char *path) {
    char whole[8192], there[4096];
    if (!path) return 0;
    if (path[0] == '/') return !strncmp(path, below, strlen(below));
    if (folder == AT_FDCWD) {
        if (!getcwd(there, sizeof there)) return 0;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, there, sizeof there - 1);
        if (n < 0) return 0;
        there[n] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", there, path);
    return !strncmp(whole, below, strlen(below));
}

static int open_inside(int fd) {
    char link[64], there[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, there, sizeof there - 1);
    if (n < 0) return 0;
    there[n] = 0;
    return !strncmp(there, below, strlen(below));
}

/* 1: the operation fails with a full disk. grows: whether it takes room, as removing does not. */
static int hit(const char *what, int grows) {
    counted++;
    if (journal[0]) {
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
        ssize_t (*put)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
        int fd = real(journal, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (fd >= 0) {
            put(fd, what, strlen(what));
            put(fd, "\n", 1);
            close(fd);
        }
    }
    if (!at || counted < at) return 0;
    if (!full) _exit(137);
    if (!grows) return 0;
    errno = ENOSPC;
    return 1;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = dlsym(RTLD_NEXT, #name)

#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC))
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest); \
        static int (*real)(const char *, int, ...); if (!real) real = dlsym(RTLD_NEXT, #name); \
        if (armed && CHANGES(flags) && inside(AT_FDCWD, path) && hit("open", 1)) return -1; \
        return real(path, flags, mode); }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest); \
        static int (*real)(int, const char *, int, ...); if (!real) real = dlsym(RTLD_NEXT, #name); \
        if (armed && CHANGES(flags) && inside(folder, path) && hit("open", 1)) return -1; \
        return real(folder, path, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

FILE *fopen(const char *path, const char *mode) {
    REAL(fopen);
    if (armed && mode[0] != 'r' && inside(AT_FDCWD, path) && hit("open", 1)) return NULL;
    return real(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    REAL(fopen64);
    if (armed && mode[0] != 'r' && inside(AT_FDCWD, path) && hit("open", 1)) return NULL;
    return real(path, mode);
}
/* A kill within a write leaves half of it, a full disk as well. */
ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (!armed || !open_inside(fd)) return real(fd, data, size);
    if (at && counted + 1 == at && size > 1) {
        if (real(fd, data, size / 2) < 0) return -1;
    }
    if (hit("write", 1)) return -1;
    return real(fd, data, size);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    REAL(pwrite64);
    if (armed && open_inside(fd) && hit("write", 1)) return -1;
    return real(fd, data, size, place);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(writev);
    if (armed && open_inside(fd) && hit("write", 1)) return -1;
    return real(fd, parts, n);
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range);
    if (armed && open_inside(out) && hit("write", 1)) return -1;
    return real(in, from, out, to, size, flags);
}
ssize_t sendfile64(int out, int in, off64_t *from, size_t size) {
    static ssize_t (*real)(int, int, off64_t *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "sendfile64");
    if (armed && open_inside(out) && hit("write", 1)) return -1;
    return real(out, in, from, size);
}

#define ON_FILE(name) int name(int fd) { REAL(name); if (armed && open_inside(fd) && hit(#name, 1)) return -1; return real(fd); }
ON_FILE(fsync) ON_FILE(fdatasync)
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); if (armed && open_inside(fd) && hit("truncate", 1)) return -1; return real(fd, size); }
int fchmod(int fd, mode_t mode) { REAL(fchmod); if (armed && open_inside(fd) && hit("chmod", 0)) return -1; return real(fd, mode); }
int chmod(const char *path, mode_t mode) { REAL(chmod); if (armed && inside(AT_FDCWD, path) && hit("chmod", 0)) return -1; return real(path, mode); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); if (armed && inside(AT_FDCWD, path) && hit("mkdir", 1)) return -1; return real(path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { REAL(mkdirat); if (armed && inside(folder, path) && hit("mkdir", 1)) return -1; return real(folder, path, mode); }
int rmdir(const char *path) { REAL(rmdir); if (armed && inside(AT_FDCWD, path)) hit("rmdir", 0); return real(path); }
int unlink(const char *path) { REAL(unlink); if (armed && inside(AT_FDCWD, path)) hit("unlink", 0); return real(path); }
int unlinkat(int folder, const char *path, int flags) { REAL(unlinkat); if (armed && inside(folder, path)) hit("unlink", 0); return real(folder, path, flags); }
int rename(const char *from, const char *to) { REAL(rename); if (armed && inside(AT_FDCWD, to) && hit("rename", 1)) return -1; return real(from, to); }
int renameat(int a, const char *from, int b, const char *to) { REAL(renameat); if (armed && inside(b, to) && hit("rename", 1)) return -1; return real(a, from, b, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    static int (*real)(int, const char *, int, const char *, unsigned);
    if (!real) real = dlsym(RTLD_NEXT, "renameat2");
    if (armed && inside(b, to) && hit("rename", 1)) return -1;
    return real(a, from, b, to, flags);
}
int link(const char *from, const char *to) { REAL(link); if (armed && inside(AT_FDCWD, to) && hit("link", 1)) return -1; return real(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) { REAL(linkat); if (armed && inside(b, to) && hit("link", 1)) return -1; return real(a, from, b, to, flags); }
int symlink(const char *from, const char *to) { REAL(symlink); if (armed && inside(AT_FDCWD, to) && hit("symlink", 1)) return -1; return real(from, to); }
int symlinkat(const char *from, int folder, const char *to) { REAL(symlinkat); if (armed && inside(folder, to) && hit("symlink", 1)) return -1; return real(from, folder, to); }
