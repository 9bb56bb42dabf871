/* Delays what a process flushes to disk, for tests: loaded by LD_PRELOAD.
 *
 * SLOW_DISK names a file that holds a number of milliseconds. It is read before
 * every flush, so that the disk can be made slow and fast again while the process
 * runs. Each flush that was delayed leaves one byte in the file of that name with
 * ".delayed" behind it: the proof that there was a fault. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void wait_as_told(void) {
    const char *path = getenv("SLOW_DISK");
    if (path == NULL) {
        return;
    }
    char text[32] = {0};
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return;
    }
    ssize_t got = read(file, text, sizeof text - 1);
    close(file);
    long ms = got > 0 ? strtol(text, NULL, 10) : 0;
    if (ms <= 0) {
        return;
    }
    char count[4096];
    snprintf(count, sizeof count, "%s.delayed", path);
    file = open(count, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file >= 0) {
        if (write(file, ".", 1) < 0) {
            /* The count is then one short. */
        }
        close(file);
    }
    struct timespec left = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&left, &left) < 0 && errno == EINTR) {
    }
}

int fsync(int file) {
    wait_as_told();
    return (int)syscall(SYS_fsync, file);
}

int fdatasync(int file) {
    wait_as_told();
    return (int)syscall(SYS_fdatasync, file);
}

#ifdef SYS_sync_file_range
int sync_file_range(int file, off64_t offset, off64_t bytes, unsigned int flags) {
    wait_as_told();
    return (int)syscall(SYS_sync_file_range, file, offset, bytes, flags);
}
#endif
