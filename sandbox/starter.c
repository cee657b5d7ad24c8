/* Starts sandboxes for the spawner, which is its parent and the parent of what it starts.
 *
 * A process is cloned cheaply only if it is small: an interpreter's children spend more time on
 * copies of its pages than on being confined. This program decides nothing. Each request is one
 * datagram with descriptors, a program: a list of system calls with their arguments, made by
 * start_program.py. The child performs them one after the other, and the first that fails is
 * reported, as a child of the spawner would report it. The answer is the child's id and a pidfd.
 *
 * usage: starter, with the socket as descriptor 3. Ends when the spawner hangs up.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define AT_EMPTY 0x1000 /* AT_EMPTY_PATH, for C libraries that don't have it here */

enum {
    CONTROL = 3,
    MAGIC = 0x32545253, /* another one for each layout: this program may be older than its caller */
    MOST_DATA = 1 << 17,  /* a longer program comes in a file */
    MOST_IN_FILE = 1 << 28,
    MOST_FDS = 8,
    SLOTS = 32,
    BATCH = 256,          /* inputs that are open at once */
    MOST_REPORT = 8192,
    NOTHING = UINT32_MAX,
};

/* What a step may do, by number: the same list as CALLS of program.py. */
enum { OPEN_INPUTS = 1000, ATTACH_INPUTS, DROP_BOUNDING_SET, EXECUTE };
static const long calls[] = {
    SYS_setns, SYS_unshare, SYS_openat, SYS_openat2, SYS_write, SYS_read, SYS_close,
    SYS_setsid, SYS_umask, SYS_prlimit64, SYS_personality, SYS_sethostname, SYS_setdomainname,
    SYS_socket, SYS_ioctl, SYS_open_tree, SYS_mount_setattr, SYS_move_mount, SYS_fchdir,
    SYS_mount, SYS_chdir, SYS_dup3, SYS_setgroups, SYS_setresgid, SYS_setresuid, SYS_capset,
    SYS_prctl, SYS_landlock_create_ruleset, SYS_landlock_restrict_self, SYS_close_range,
};
enum { CALLS = sizeof calls / sizeof *calls };

/* All offsets count from the start of the program; so does every pointer before it is moved. */
struct program {
    uint32_t magic, size;
    uint64_t clone_flags;
    uint32_t descriptors;       /* how many come with it; slots 0 and on */
    uint32_t report;            /* the slot of the pipe to report on */
    uint32_t cgroup;            /* the slot of the control group, or NOTHING */
    uint32_t steps_at, steps;
    uint32_t pointers_at, pointers;
    uint32_t padding;
};

struct step {
    uint32_t call;
    uint16_t slot_arguments;    /* a bit for each argument that is a slot's number */
    uint16_t only_again;        /* has to fail with EAGAIN; else this process ends without a word */
    uint32_t result;            /* the slot that gets the result, or NOTHING */
    uint32_t prefix_at, prefix; /* of the report: what was being done, by which call */
    uint32_t path_at, path;     /* of the report: on which path */
    uint32_t padding;
    uint64_t arguments[6];
};

static _Alignas(16) unsigned char data[MOST_DATA];
static int64_t slots[SLOTS];
static struct { int mount; const char *name; } inputs[BATCH];
static int input_count;
static const char *file_point;  /* a mount point that is a file; the others are links to it */

/* A report as messages.py packs it, and the end. */
static _Noreturn void fail(const struct program *program, const void *prefix, size_t prefix_size,
                           const void *path, size_t path_size, int error)
{
    unsigned char report[MOST_REPORT], *at = report;
    int64_t number = error;
    if (path_size > 4096)
        path_size = 4096;
    if (prefix_size > MOST_REPORT - 4096 - 32)
        _exit(1);
    at = mempcpy(at, prefix, prefix_size);
    *at++ = 'i';
    at = mempcpy(at, &number, sizeof number);
    *at++ = 's';
    uint32_t size = path_size;
    at = mempcpy(at, &size, sizeof size);
    at = mempcpy(at, path, path_size);
    if (write(slots[program->report], report, at - report) < 0)
        _exit(2);
    _exit(1);
}

static _Noreturn void fail_step(const struct program *program, const struct step *step, int error)
{
    const char *base = (const char *)program;
    fail(program, base + step->prefix_at, step->prefix, base + step->path_at, step->path, error);
}

/* A file to mount on. One inode does for all, as long as it can have more names: making many costs
 * more than mounting. The store is reached where nothing is mounted on them. */
static int make_file(int store, const char *name)
{
    if (file_point != NULL && linkat(store, file_point, store, name, 0) == 0)
        return 0;
    file_point = name;
    return mknodat(store, name, S_IFREG | 0444, 0);
}

/* A copy of an input's mount, and its mount point; links are made anew. As mounts.py does it. */
static int open_input(int store, const char *source, const char *name)
{
    struct stat status;
    int mount = syscall(SYS_open_tree, AT_FDCWD, source,
                        OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW);
    if (mount < 0 || fstat(mount, &status) < 0)
        return -1;
    if (S_ISLNK(status.st_mode)) {
        char target[4097];
        struct timespec times[] = {status.st_atim, status.st_mtim};
        ssize_t size = readlinkat(mount, "", target, sizeof target - 1);
        if (size < 0)
            return -1;
        target[size] = '\0';
        if (symlinkat(target, store, name) < 0 ||
            utimensat(store, name, times, AT_SYMLINK_NOFOLLOW) < 0)
            return -1;
        close(mount);
        return 0;
    }
    int made = S_ISDIR(status.st_mode) ? mkdirat(store, name, 0555) : make_file(store, name);
    struct mount_attr attributes = {
        .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
    if (made < 0 ||
        syscall(SYS_mount_setattr, mount, "", AT_EMPTY, &attributes, sizeof attributes) < 0)
        return -1;
    inputs[input_count].mount = mount;
    inputs[input_count++].name = name;
    return 0;
}

/* Arguments: the scratch store, and sources and names of inputs, each with a NUL; an empty source
 * is the end. */
static void open_inputs(const struct program *program, const struct step *step, const int64_t *a)
{
    const char *base = (const char *)program;
    const char *source = (const char *)a[1], *end = base + program->size;
    input_count = 0;
    while (*source != '\0') {
        const char *name = source + strlen(source) + 1;
        if (name >= end || input_count == BATCH)
            fail_step(program, step, E2BIG);
        if (open_input(a[0], source, name) < 0)
            fail(program, base + step->prefix_at, step->prefix, source, strlen(source), errno);
        source = name + strlen(name) + 1;
        if (source >= end)
            fail_step(program, step, E2BIG);
    }
}

/* Argument: the store directory, whose new names are mount points. */
static void attach_inputs(const struct program *program, const struct step *step, const int64_t *a)
{
    const char *base = (const char *)program;
    for (int number = 0; number < input_count; number++) {
        const char *name = inputs[number].name;
        if (syscall(SYS_move_mount, inputs[number].mount, "", (int)a[0], name,
                    MOVE_MOUNT_F_EMPTY_PATH) < 0)
            fail(program, base + step->prefix_at, step->prefix, name, strlen(name), errno);
        close(inputs[number].mount);
    }
}

/* Arguments: program, argv, envp, and the line for the log, in two pieces around the reason. */
static _Noreturn void execute(const struct program *program, const struct step *step,
                              const int64_t *a)
{
    execve((char *)a[0], (char **)a[1], (char **)a[2]);
    int error = errno;
    const char *reason = strerrordesc_np(error);
    const char *texts[] = {(char *)a[3], reason != NULL ? reason : "?", (char *)a[4]};
    struct iovec pieces[3];
    for (int number = 0; number < 3; number++)
        pieces[number] = (struct iovec){(void *)texts[number], strlen(texts[number])};
    if (writev(2, pieces, 3) < 0)
        error = errno;
    fail_step(program, step, error);
}

static void perform(const struct program *program, const struct step *step)
{
    int64_t a[6], result = 0;
    for (int number = 0; number < 6; number++) {
        a[number] = step->arguments[number];
        if (step->slot_arguments & 1 << number)
            a[number] = a[number] < SLOTS ? slots[a[number]] : -1;
    }
    switch (step->call) {
    case OPEN_INPUTS:
        open_inputs(program, step, a);
        break;
    case ATTACH_INPUTS:
        attach_inputs(program, step, a);
        break;
    case DROP_BOUNDING_SET:
        for (int64_t capability = 0; result == 0 && capability <= a[0]; capability++)
            result = prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
        break;
    case EXECUTE:
        execute(program, step, a);
    default:
        if (step->call >= CALLS)
            fail_step(program, step, ENOSYS);
        result = syscall(calls[step->call], a[0], a[1], a[2], a[3], a[4], a[5]);
    }
    if (step->only_again) {
        if (result >= 0 || errno != EAGAIN)
            _exit(1);
    } else if (result < 0) {
        fail_step(program, step, errno);
    }
    if (step->result < SLOTS)
        slots[step->result] = result;
}

/* Whether a program can be walked through without leaving it; its pointers are moved then. */
static int prepare(struct program *program, size_t size, uint32_t descriptors)
{
    unsigned char *base = (unsigned char *)program;
    if (size < sizeof *program || program->magic != MAGIC || program->size != size ||
        program->descriptors != descriptors || program->report >= descriptors ||
        (program->cgroup != NOTHING && program->cgroup >= descriptors) ||
        program->steps_at % 8 || program->steps_at > size || program->steps == 0 ||
        program->steps > (size - program->steps_at) / sizeof(struct step) ||
        program->pointers_at % 4 || program->pointers_at > size ||
        program->pointers > (size - program->pointers_at) / 4 || base[size - 1] != '\0')
        return -1;
    const struct step *steps = (struct step *)(base + program->steps_at);
    for (uint32_t number = 0; number < program->steps; number++) {
        const struct step *step = &steps[number];
        if (step->prefix_at > size || step->prefix > size - step->prefix_at ||
            step->path_at > size || step->path > size - step->path_at)
            return -1;
    }
    const uint32_t *pointers = (uint32_t *)(base + program->pointers_at);
    for (uint32_t number = 0; number < program->pointers; number++) {
        uint32_t at = pointers[number];
        if (at % 8 || at > size - 8)
            return -1;
        uint64_t *pointer = (uint64_t *)(base + at);
        if (*pointer >= size)
            return -1;
        *pointer += (uintptr_t)base;
    }
    return 0;
}

static _Noreturn void run_child(const struct program *program)
{
    const struct step *steps =
        (const struct step *)((const char *)program + program->steps_at);
    for (uint32_t number = 0; number < program->steps; number++)
        perform(program, &steps[number]);
    _exit(1);
}

/* The program, where it came in a file (the last descriptor) because it is long; or NULL. */
static struct program *read_program(int file, size_t *size)
{
    struct stat status;
    if (fstat(file, &status) < 0 || status.st_size > MOST_IN_FILE)
        return NULL;
    void *memory = mmap(NULL, status.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    *size = status.st_size;
    return memory == MAP_FAILED ? NULL : memory;
}

static int64_t start(struct program *program, size_t size, const int *fds, int count, int *pidfd)
{
    if (program != NULL && size >= sizeof program->magic && program->magic != MAGIC)
        return -ENOEXEC;
    if (program == NULL || prepare(program, size, count) < 0)
        return -EINVAL;
    struct clone_args arguments = {
        .flags = program->clone_flags | CLONE_PIDFD | CLONE_PARENT,
        .pidfd = (uintptr_t)pidfd,
    };
    if (program->cgroup != NOTHING) {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = fds[program->cgroup];
    }
    long pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid == 0) {
        for (int number = 0; number < SLOTS; number++)
            slots[number] = number < count ? fds[number] : -1;
        run_child(program);
    }
    return pid < 0 ? -errno : pid;
}

/* One answer: the child's id, or an error's number with a minus; a pidfd where there is a child. */
static void answer(int64_t pid, int pidfd)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof pidfd)] = {0};
    struct iovec vector = {&pid, sizeof pid};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (pid > 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof pidfd);
        memcpy(CMSG_DATA(header), &pidfd, sizeof pidfd);
    }
    if (sendmsg(CONTROL, &message, MSG_NOSIGNAL) < 0)
        _exit(1); /* the spawner is gone */
}

static void serve_one(void)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int) * MOST_FDS)];
    struct iovec vector = {data, sizeof data};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    ssize_t size = recvmsg(CONTROL, &message, MSG_CMSG_CLOEXEC);
    if (size <= 0)
        _exit(0);
    int fds[MOST_FDS], count = 0, pidfd = -1;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
        count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(fds, CMSG_DATA(header), count * sizeof(int));
    }
    struct program *program = (struct program *)data;
    size_t length = size;
    int in_file = length == 1 && count > 0;
    if (in_file)
        program = read_program(fds[--count], &length);
    int64_t pid = -EINVAL;
    if (!(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
        pid = start(program, length, fds, count, &pidfd);
    answer(pid, pidfd);
    if (in_file) {
        close(fds[count]);
        if (program != NULL)
            munmap(program, length);
    }
    if (pidfd >= 0)
        close(pidfd);
    while (count > 0)
        close(fds[--count]);
}

/* posix_spawn has signals ignored that the C library keeps to itself; programs must not be. */
static int reset_signals(void)
{
    static const char defaults[32];
    for (long number = 1; number <= 64; number++)
        if (number != SIGKILL && number != SIGSTOP &&
            syscall(SYS_rt_sigaction, number, defaults, NULL, 8L) < 0)
            return -1;
    return 0;
}

int main(void)
{
    if (reset_signals() < 0)
        return 2;
    /* Whatever else has come along would be held open for whoever waits for its end. */
    if (fcntl(CONTROL, F_SETFD, FD_CLOEXEC) < 0 || close_range(CONTROL + 1, ~0U, 0) < 0)
        return 2;
    for (;;)
        serve_one();
}
