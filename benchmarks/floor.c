/* The floor of a sandboxed start: clone with all namespaces, execute a program, wait for its end.
 *
 * usage: floor COUNT PROGRAM [ARGUMENT...]
 * Prints how many nanoseconds each of COUNT starts took, one a line. Needs root.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    NAMESPACES = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS,
    STACK = 64 * 1024,
};

static char stack[STACK] __attribute__((aligned(16)));

static int child(void *arguments)
{
    char **argv = arguments;
    execv(argv[0], argv);
    _exit(127);
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fputs("usage: floor COUNT PROGRAM [ARGUMENT...]\n", stderr);
        return 2;
    }
    for (long left = atol(argv[1]); left > 0; left--) {
        int64_t start = now();
        int status;
        pid_t pid = clone(child, stack + STACK, NAMESPACES | SIGCHLD, argv + 2);
        if (pid < 0 || waitpid(pid, &status, 0) != pid) {
            perror("floor");
            return 1;
        }
        if (status != 0) {
            fprintf(stderr, "floor: the program ended with status %d\n", status);
            return 1;
        }
        printf("%lld\n", (long long)(now() - start));
    }
    return 0;
}
