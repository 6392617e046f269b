/*
 * The measured side of the benchmark: small loops around system calls, so that what is measured is
 * the filesystem and not whoever asks it.
 *
 *   driver read DIR LIST PASSES          open, read and close every file named in LIST, below DIR
 *   driver latency DIR LIST              the same once; the medians of the three calls
 *   driver sequential FILE PASSES        read FILE from its beginning to its end
 *   driver run DIR PASSES COMMAND...     run COMMAND in DIR, its output thrown away
 *   driver herd READERS FILE             as many processes open and read FILE at the same moment
 *
 * Prints one line a pass: nanoseconds and bytes. Any failure ends it with 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* As much as cat(1) reads at a time. */
#define BUFFER (128 * 1024)

static char buffer[BUFFER];

static void fail(const char *what)
{
    fprintf(stderr, "driver: %s: %s\n", what, strerror(errno));
    exit(1);
}

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void report(long long nanoseconds, long long bytes)
{
    printf("%lld %lld\n", nanoseconds, bytes);
    fflush(stdout);
}

/* The lines of a file; sets their number. */
static char **lines(const char *path, size_t *count)
{
    FILE *file = fopen(path, "r");
    char **all = NULL, *line = NULL;
    size_t room = 0, size = 0;
    ssize_t length;
    if (!file)
        fail(path);
    *count = 0;
    while ((length = getline(&line, &size, file)) > 0) {
        if (line[length - 1] == '\n')
            line[length - 1] = 0;
        if (*count == room) {
            room = room ? room * 2 : 1024;
            all = realloc(all, room * sizeof *all);
            if (!all)
                fail("memory");
        }
        all[(*count)++] = strdup(line);
    }
    free(line);
    fclose(file);
    return all;
}

static long long drain(int fd, const char *path)
{
    long long bytes = 0;
    ssize_t got;
    while ((got = read(fd, buffer, BUFFER)) > 0)
        bytes += got;
    if (got < 0)
        fail(path);
    return bytes;
}

static void read_all(const char *list, int passes)
{
    size_t count;
    char **paths = lines(list, &count);
    for (int pass = 0; pass < passes; pass++) {
        long long bytes = 0, start = now();
        for (size_t i = 0; i < count; i++) {
            int fd = open(paths[i], O_RDONLY | O_CLOEXEC);
            ssize_t got;
            if (fd < 0 || (got = read(fd, buffer, BUFFER)) < 0)
                fail(paths[i]);
            bytes += got;
            close(fd);
        }
        report(now() - start, bytes);
    }
}

static int by_value(const void *left, const void *right)
{
    long long a = *(const long long *)left, b = *(const long long *)right;
    return (a > b) - (a < b);
}

static void latencies(const char *list)
{
    size_t count;
    char **paths = lines(list, &count);
    long long *times[3];
    for (int i = 0; i < 3; i++)
        if (!(times[i] = calloc(count, sizeof(long long))))
            fail("memory");
    for (size_t i = 0; i < count; i++) {
        long long t0 = now();
        int fd = open(paths[i], O_RDONLY | O_CLOEXEC);
        long long t1 = now();
        ssize_t got = read(fd, buffer, BUFFER);
        long long t2 = now();
        if (fd < 0 || got < 0)
            fail(paths[i]);
        close(fd);
        times[0][i] = t1 - t0;
        times[1][i] = t2 - t1;
        times[2][i] = now() - t2;
    }
    for (int i = 0; i < 3; i++) {
        qsort(times[i], count, sizeof(long long), by_value);
        report(count ? times[i][count / 2] : 0, 0);
    }
}

static void sequential(const char *path, int passes)
{
    for (int pass = 0; pass < passes; pass++) {
        long long start = now(), bytes;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            fail(path);
        bytes = drain(fd, path);
        close(fd);
        report(now() - start, bytes);
    }
}

static void finish(pid_t child, const char *what)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            fail("waitpid");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "driver: %s ended with status %d\n", what, status);
        exit(1);
    }
}

static void run(int passes, char **command)
{
    posix_spawn_file_actions_t silent;
    posix_spawn_file_actions_init(&silent);
    posix_spawn_file_actions_addopen(&silent, 1, "/dev/null", O_WRONLY, 0);
    for (int pass = 0; pass < passes; pass++) {
        long long start = now();
        pid_t child;
        errno = posix_spawnp(&child, command[0], &silent, NULL, command, environ);
        if (errno)
            fail(command[0]);
        finish(child, command[0]);
        report(now() - start, 0);
    }
}

static void herd(int readers, const char *path)
{
    int gate[2];
    long long start;
    pid_t children[1024];
    if (readers < 1 || readers > 1024 || pipe(gate) < 0)
        fail("readers");
    for (int i = 0; i < readers; i++) {
        children[i] = fork();
        if (children[i] < 0)
            fail("fork");
        if (children[i] == 0) {
            char none;
            struct stat info;
            int fd;
            close(gate[1]);
            /* All wait here until the last writer is gone. */
            if (read(gate[0], &none, 1) != 0)
                _exit(2);
            fd = open(path, O_RDONLY);
            if (fd < 0 || fstat(fd, &info) < 0 || drain(fd, path) != info.st_size)
                _exit(3);
            _exit(0);
        }
    }
    start = now();
    close(gate[1]);
    for (int i = 0; i < readers; i++)
        finish(children[i], "a reader");
    report(now() - start, 0);
}

static void enter(const char *dir)
{
    if (chdir(dir) < 0)
        fail(dir);
}

int main(int count, char **words)
{
    const char *mode = count > 1 ? words[1] : "";
    if (!strcmp(mode, "read") && count == 5) {
        enter(words[2]);
        read_all(words[3], atoi(words[4]));
    } else if (!strcmp(mode, "latency") && count == 4) {
        enter(words[2]);
        latencies(words[3]);
    } else if (!strcmp(mode, "sequential") && count == 4) {
        sequential(words[2], atoi(words[3]));
    } else if (!strcmp(mode, "run") && count > 4) {
        enter(words[2]);
        run(atoi(words[3]), words + 4);
    } else if (!strcmp(mode, "herd") && count == 4) {
        herd(atoi(words[2]), words[3]);
    } else {
        fprintf(stderr, "driver: see the comment in its source\n");
        return 2;
    }
    return 0;
}
