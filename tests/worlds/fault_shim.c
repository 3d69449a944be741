/* A library to preload: file operations on paths that contain $FAULT_PATH fail, wait, or kill, as told.

   FAULT_CALL   fsync (fdatasync is meant too), read, write
   FAULT_KIND   EIO, ENOSPC, sleep (2 s, then as usual), kill
   FAULT_AT     the how many-th such call, from 1; 0 is every one */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int count;

static int hit(const char *call, int fd) {
    const char *wanted = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH"), *kind = getenv("FAULT_KIND"), *at = getenv("FAULT_AT");
    char link[64], path[4096];
    if (!wanted || !part || !kind || strcmp(call, wanted)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    if (!strstr(path, part)) return 0;
    int now = ++count, when = at ? atoi(at) : 0;
    if (when && now != when) return 0;
    if (!strcmp(kind, "kill")) raise(SIGKILL);
    if (!strcmp(kind, "sleep")) { sleep(2); return 0; }
    errno = !strcmp(kind, "ENOSPC") ? ENOSPC : EIO;
    return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, #name)
int fsync(int fd) { REAL(fsync); return hit("fsync", fd) ? -1 : real(fd); }
int fdatasync(int fd) { REAL(fdatasync); return hit("fsync", fd) ? -1 : real(fd); }
ssize_t read(int fd, void *to, size_t n) { REAL(read); return hit("read", fd) ? -1 : real(fd, to, n); }
ssize_t writev(int fd, const struct iovec *from, int n) { REAL(writev); return hit("write", fd) ? -1 : real(fd, from, n); }
ssize_t write(int fd, const void *from, size_t n) { REAL(write); return hit("write", fd) ? -1 : real(fd, from, n); }
