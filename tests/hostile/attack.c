/* Attacks from inside a sandbox: "attack NAME [ARGUMENTS]". Answers are lines "what errno". */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/ptrace.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *name, long result) {
  printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "OK");
  fflush(stdout);
}
#define T(name, call) (errno = 0, say(name, (long)(call)))

static void path_of(char *buffer, const char *directory, const char *name) {
  snprintf(buffer, 4096, "%s/%s", directory, name);
}

/* Row 3: every way to change what lies in an input that modes would let us change. */
static void change_input(const char *input) {
  char file[4096], fresh[4096];
  path_of(file, input, "file");
  path_of(fresh, input, "fresh");
  int fd = open(file, O_RDONLY), directory = open(input, O_RDONLY | O_DIRECTORY);
  int flags = 0;
  struct timespec times[2] = {{1, 0}, {1, 0}};
  T("open_write", open(file, O_WRONLY));
  T("open_read_write", open(file, O_RDWR));
  T("open_append", open(file, O_WRONLY | O_APPEND));
  T("open_truncate", open(file, O_RDONLY | O_TRUNC));
  T("reopen_write", ({ char link[64]; snprintf(link, 64, "/proc/self/fd/%d", fd); open(link, O_WRONLY); }));
  T("create", open(fresh, O_WRONLY | O_CREAT, 0600));
  T("create_unnamed", open(input, O_WRONLY | O_TMPFILE, 0600));
  T("truncate", truncate(file, 0));
  T("chmod", chmod(file, 0600));
  T("fchmod", fchmod(fd, 0600));
  T("fchmodat2", syscall(452, directory, "file", 0600, 0));
  T("chmod_directory", chmod(input, 0700));
  T("chown", chown(file, getuid(), getgid()));
  T("fchown", fchown(fd, getuid(), getgid()));
  T("rename", rename(file, fresh));
  T("rename_over", ({ close(open("mine", O_WRONLY | O_CREAT, 0600)); rename("mine", file); }));
  T("exchange", syscall(SYS_renameat2, AT_FDCWD, "mine", AT_FDCWD, file, 2));
  T("link_within", link(file, fresh));
  T("link_out", link(file, "stolen"));
  T("unlink", unlink(file));
  T("rmdir", rmdir(({ static char sub[4096]; path_of(sub, input, "sub"); sub; })));
  T("mkdir", mkdir(fresh, 0700));
  T("symlink", symlink("x", fresh));
  T("mkfifo", mkfifo(fresh, 0600));
  T("whiteout", mknod(fresh, S_IFCHR, 0));
  T("utimes", utimensat(AT_FDCWD, file, times, 0));
  T("futimes", futimens(fd, times));
  T("set_flags", ioctl(fd, 0x40086602, &flags));
  T("map_write", mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);
  T("remount", mount("", input, "", MS_REMOUNT | MS_BIND, 0));
  T("bind_socket", ({
      struct sockaddr_un at = {.sun_family = AF_UNIX};
      snprintf(at.sun_path, sizeof at.sun_path, "%.90s", fresh);
      bind(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&at, sizeof at);
  }));
  close(fd);
  close(directory);
}

static int write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY);
  int result = fd < 0 || write(fd, text, strlen(text)) < 0 ? -1 : 0;
  close(fd);
  return result;
}

/* Root of a user and mount namespace of our own, as any builder may become. */
static int nested(void) {
  char map[64];
  int uid = getuid(), gid = getgid();
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) return -1;
  snprintf(map, 64, "0 %d 1", uid);
  if (write_file("/proc/self/uid_map", map) < 0) return -1;
  write_file("/proc/self/setgroups", "deny");
  snprintf(map, 64, "0 %d 1", gid);
  return write_file("/proc/self/gid_map", map);
}

static void compare_with_root(const char *name, const char *path, struct stat *root) {
  struct stat here;
  if (stat(path, &here) < 0) printf("%s %s\n", name, strerrorname_np(errno));
  else printf("%s %s\n", name,
              here.st_dev == root->st_dev && here.st_ino == root->st_ino ? "inside" : "OUTSIDE");
  fflush(stdout);
}

/* Row 8: the ways out of a root that have worked somewhere. */
static void escape(void) {
  struct stat root;
  stat("/", &root);
  int kept = open(".", O_RDONLY | O_DIRECTORY), top = open("/", O_RDONLY | O_DIRECTORY);
  for (int i = 0; i < 64; i++) if (chdir("..") < 0) break;
  compare_with_root("up", ".", &root);
  compare_with_root("root_of_self", "/proc/self/root/..", &root);
  compare_with_root("root_of_first", "/proc/1/root/../..", &root);
  compare_with_root("cwd_of_first", "/proc/1/cwd/../../..", &root);
  T("nested", nested());
  T("mkdir", mkdir("/build/jail", 0700));
  T("chroot", chroot("/build/jail"));
  fchdir(kept);
  for (int i = 0; i < 64; i++) if (chdir("..") < 0) break;
  compare_with_root("chroot_and_kept", ".", &root);
  fchdir(top);
  for (int i = 0; i < 64; i++) if (chdir("..") < 0) break;
  T("chroot_back", chroot("."));
  compare_with_root("second_chroot", "/", &root);
}

/* Row 8: a root of our own in place of the sandbox's, to see what lies under that. */
static void pivot(void) {
  struct stat root;
  stat("/", &root);
  int top = open("/", O_RDONLY | O_DIRECTORY);
  T("nested", nested());
  T("jail", mkdir("/build/jail", 0700));
  T("tmpfs", mount("x", "/build/jail", "tmpfs", 0, 0));
  T("old", mkdir("/build/jail/old", 0700));
  T("pivot", syscall(SYS_pivot_root, "/build/jail", "/build/jail/old"));
  chdir("/old");
  for (int i = 0; i < 64; i++) if (chdir("..") < 0) break;
  compare_with_root("below_new", "/old", &root);
  T("detach_old", umount2("/old", MNT_DETACH));
  T("detach_root", umount2("/", MNT_DETACH));
  fchdir(top);
  for (int i = 0; i < 64; i++) if (chdir("..") < 0) break;
  compare_with_root("detached", ".", &root);
}

/* Row 18: prints what can be opened for writing below a directory; nothing is written. */
static void find_writable(const char *top) {
  DIR *directory = opendir(top);
  struct dirent *entry;
  if (directory == NULL) return;
  while ((entry = readdir(directory)) != NULL) {
    char path[4096];
    struct stat status;
    if (entry->d_name[0] == '.' && strchr("./", entry->d_name[1]) != NULL) continue;
    path_of(path, top, entry->d_name);
    if (lstat(path, &status) < 0 || S_ISLNK(status.st_mode)) continue;
    if (S_ISDIR(status.st_mode)) {
      find_writable(path);
      continue;
    }
    if (S_ISFIFO(status.st_mode)) continue;
    int fd = open(path, O_WRONLY | O_NONBLOCK);
    if (fd >= 0) {
      printf("%s\n", path);
      close(fd);
    }
  }
  closedir(directory);
}

/* Row 53: objects with well-known keys; "make" leaves them behind, "look" finds none. */
static void ipc(const char *what) {
  int flags = strcmp(what, "make") ? 0 : IPC_CREAT | 0666;
  T("shm", shmget(0x4e6978, 4096, flags));
  T("sem", semget(0x4e6978, 1, flags));
  T("msg", msgget(0x4e6978, flags));
  T("posix", open("/dev/shm/nix", flags ? O_CREAT | O_RDWR : O_RDWR, 0666));
  struct stat status;
  T("mqueue", stat("/dev/mqueue", &status));
}

/* Rows 54, 55: every process that a number could stand for. */
static void hunt(const char *pid_text) {
  int pid = atoi(pid_text);
  char path[64];
  T("kill", kill(pid, 0));
  T("pidfd", syscall(434, pid, 0));
  T("ptrace", ptrace(PTRACE_ATTACH, pid, 0, 0));
  struct iovec here = {path, 1}, there = {(void *)0x400000, 1};
  T("readv", syscall(SYS_process_vm_readv, pid, &here, 1, &there, 1, 0));
  T("prlimit", syscall(SYS_prlimit64, pid, 0, 0, 0));
  T("setpriority", syscall(SYS_setpriority, 0, pid, 19));
  snprintf(path, 64, "/proc/%d/mem", pid);
  T("mem", open(path, O_RDWR));
  kill(-1, SIGKILL);
  T("kill_all", 0);
}

/* Row 7: devices, which even where they can be made must not work. */
static void nodes(const char *directory) {
  char path[4096];
  path_of(path, directory, "node");
  T("mem", mknod(path, S_IFCHR | 0666, makedev(1, 1)));
  T("null", mknod(path, S_IFCHR | 0666, makedev(1, 3)));
  T("disk", mknod(path, S_IFBLK | 0666, makedev(8, 0)));
  T("whiteout", mknod(path, S_IFCHR | 0666, 0));
  T("open_whiteout", open(path, O_RDONLY | O_NONBLOCK));
  unlink(path);
}

/* Row 66: other ids. */
static void ids(void) {
  T("setuid_0", setuid(0));
  T("setuid_next", setuid(getuid() + 1));
  T("setresuid", setresuid(getuid(), 1, getuid()));
  T("setgid_0", setgid(0));
  T("setgroups", syscall(SYS_setgroups, 1, (gid_t[]){0}));
  T("setfsuid", (syscall(SYS_setfsuid, 0), syscall(SYS_setfsuid, -1) == 0 ? 0 : (errno = EPERM, -1)));
}

static void write_for_ever(const char *path, const char *how) {
  if (!strcmp(how, "mapped")) {
    int fd = open(path, O_RDWR);
    volatile char *map = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (;;) map[0] = 'E';
  }
  for (;;) {
    int fd = open(path, O_WRONLY);
    if (fd >= 0 && write(fd, "EVIL", 4) < 0) usleep(1);
    close(fd);
    usleep(100);
  }
}

/* Rows 65, 67, 159: leaves a process behind, as firmly as it can, that writes to a file. */
static void leave(const char *path, const char *how) {
  int ready[2];
  char byte;
  if (pipe(ready) < 0) exit(1);
  if (fork() == 0) {
    setsid();
    if (fork() != 0) _exit(0);
    for (int number = 1; number < 65; number++) signal(number, SIG_IGN);
    for (int fd = 3; fd < 256; fd++) if (fd != ready[1]) close(fd);
    int child = 0;
    if (!strcmp(how, "traced") && (child = fork()) == 0) {
      ptrace(PTRACE_TRACEME, 0, 0, 0);
      raise(SIGSTOP);
    } else if (!strcmp(how, "vforked")) {
      if (syscall(SYS_vfork) != 0) _exit(0);
    } else if (!strcmp(how, "stopped") && fork() == 0) {
      raise(SIGSTOP);
    }
    if (write(ready[1], "x", 1) < 0) _exit(1);
    if (child) for (;;) pause();
    write_for_ever(path, how);
  }
  if (read(ready[0], &byte, 1) < 0) exit(1);
}

/* Rows 77, 90: a chain of directories, each with some files; the last levels closed. */
static void deep(const char *top, const char *levels, const char *files) {
  if (chdir(top) < 0) exit(1);
  for (int level = atoi(levels); level > 0; level--) {
    for (int file = atoi(files); file > 0; file--) {
      char name[32];
      snprintf(name, 32, "f%d", file);
      close(open(name, O_WRONLY | O_CREAT, 0));
    }
    if (mkdir("d", 0777) < 0 || chdir("d") < 0) exit(1);
  }
  chmod(".", 0);
}

/* Row 91: many entries in one directory. */
static void many(const char *top, const char *count) {
  if (chdir(top) < 0) exit(1);
  for (int number = atoi(count); number > 0; number--) {
    char name[32];
    snprintf(name, 32, "%d", number);
    if (mknod(name, S_IFREG | 0444, 0) < 0) exit(1);
  }
}

/* Row 77: parts of a btrfs that are deleted by other means than files, if at all. */
static void subvolumes(const char *directory) {
  struct { long fd; char name[4088]; } arguments = {0, "subvolume"};
  struct { long fd, transid, flags, unused[4]; char name[4040]; } second = {.name = "second"};
  long read_only = 2;
  int fd = open(directory, O_RDONLY | O_DIRECTORY);
  arguments.fd = second.fd = fd;
  T("create", ioctl(fd, 0x5000940e, &arguments));
  T("create_v2", ioctl(fd, 0x50009418, &second));
  T("snapshot", ioctl(fd, 0x50009401, &arguments));
  T("snapshot_v2", ioctl(fd, 0x50009417, &second));
  T("read_only", ioctl(fd, 0x4008941a, &read_only));
}

/* Row 164: as many as may be of what the kernel counts by users, kept until its end. */
static void counters(long most) {
  struct mq_attr large = {.mq_maxmsg = 10, .mq_msgsize = 8192};
  union sigval value = {0};
  sigset_t blocked;
  char name[32];
  long i;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGRTMIN);
  sigprocmask(SIG_BLOCK, &blocked, NULL);
  for (i = 0; i < most && inotify_init() >= 0; i++);
  say("inotify", i == most ? 0 : -1);
  for (i = 0; i < most; i++) {
    snprintf(name, sizeof name, "/attack-%ld", i);
    if (mq_open(name, O_CREAT | O_RDWR, 0600, &large) < 0) break;
    if (most == 1) mq_unlink(name);
  }
  say("queues", i == most ? 0 : -1);
  for (i = 0; i < most && sigqueue(getpid(), SIGRTMIN, value) == 0; i++);
  say("signals", i == most ? 0 : -1);
}

/* Row 28: a packet socket, by its family and by the older way to ask for it, as root of a network. */
static void packet(void) {
  T("nested", nested());
  T("network", unshare(CLONE_NEWNET));
  T("raw", socket(AF_INET, SOCK_RAW, IPPROTO_UDP));
  T("family", socket(AF_PACKET, SOCK_RAW, 0x300));
  T("type", socket(AF_INET, SOCK_PACKET, 0x300));
  T("type_cloexec", socket(AF_INET, SOCK_PACKET | SOCK_CLOEXEC, 0x300));
  T("type_garbage", syscall(SYS_socket, 0xDEADBEEF00000002, 0xDEADBEEF0000000A, 0x300));
  T("type_other_flags", socket(AF_INET, SOCK_PACKET | 0x10, 0x300));
}

/* An address of a unix socket: a path, or "@name" for an abstract one. */
static socklen_t unix_address(struct sockaddr_un *at, const char *name) {
  memset(at, 0, sizeof *at);
  at->sun_family = AF_UNIX;
  snprintf(at->sun_path, sizeof at->sun_path, "%s", name);
  if (name[0] == '@') at->sun_path[0] = 0;
  return offsetof(struct sockaddr_un, sun_path) + strlen(name) + (name[0] != '@');
}

/* Rows 43, 44, 64: gives an open file away, over a connection that comes in or goes out. */
static void give(const char *how, const char *name, const char *path) {
  struct sockaddr_un at;
  socklen_t length = unix_address(&at, name);
  int channel = socket(AF_UNIX, SOCK_STREAM, 0), file = open(path, O_RDWR | O_CREAT, 0644);
  char byte = 'x', space[CMSG_SPACE(sizeof(int))] = {0};
  struct timeval patience = {3, 0};
  if (!strcmp(how, "out")) {
    T("connect_out", connect(channel, (void *)&at, length));
  } else {
    bind(channel, (void *)&at, length);
    listen(channel, 1);
    setsockopt(channel, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    T("come_in", channel = accept(channel, 0, 0));
  }
  struct iovec part = {&byte, 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space,
                           .msg_controllen = sizeof space};
  struct cmsghdr *head = CMSG_FIRSTHDR(&message);
  *head = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
  memcpy(CMSG_DATA(head), &file, sizeof file);
  T("given", sendmsg(channel, &message, MSG_NOSIGNAL));
  setsockopt(channel, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  if (read(channel, &byte, 1) < 0) exit(1);
}

/* Row 48: a service at 127.0.0.1. */
static void reach(const char *port) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port)),
                           .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  T("loopback", connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&at, sizeof at));
}

/* Row 47: is there a way to anywhere? By UDP, so that nothing is sent. */
static void route(void) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(9),
                           .sin_addr.s_addr = htonl(0xc0000201)};
  T("route", connect(socket(AF_INET, SOCK_DGRAM, 0), (void *)&at, sizeof at));
}

/* Row 56: a key of whoever started the builder. */
static void key(const char *name) {
  char secret[64];
  long found = syscall(SYS_request_key, "user", name, 0, 0);
  say("find_key", found);
  if (found >= 0) T("read_key", syscall(SYS_keyctl, 11, found, secret, sizeof secret));
}

/* Row 57: makes the log's terminal its own, and types into it. */
static void terminal(void) {
  T("take", ioctl(1, TIOCSCTTY, 1));
  T("open", open("/dev/tty", O_RDWR));
  T("type", ioctl(1, TIOCSTI, "x"));
}

/* Rows 34, 35: every way to make a file with a set-id bit. */
static void set_id(const char *directory) {
  char path[4096];
  path_of(path, directory, "opened");
  T("open", open(path, O_WRONLY | O_CREAT, 06755));
  path_of(path, directory, "made");
  T("mknod", mknod(path, S_IFREG | 06755, 0));
  path_of(path, directory, "changed");
  close(open(path, O_WRONLY | O_CREAT, 0755));
  T("chmod", chmod(path, 04755));
  path_of(path, directory, "unnamed");
  int file = open(directory, O_WRONLY | O_TMPFILE, 04755);
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  T("link_unnamed", file < 0 ? -1 : linkat(AT_FDCWD, link, AT_FDCWD, path, AT_SYMLINK_FOLLOW));
}

/* Rows 37, 40, 88: attributes, by the calls that came last. */
static void attributes(const char *path) {
  struct { unsigned long value; unsigned size, flags; } how = {(unsigned long)"1", 1, 0};
  static const char capability[20] = {0, 0, 0, 2, 0, 32};
  T("user", syscall(463, AT_FDCWD, path, 0, "user.x", &how, sizeof how));
  how.value = (unsigned long)capability;
  how.size = sizeof capability;
  T("capability", syscall(463, AT_FDCWD, path, 0, "security.capability", &how, sizeof how));
}

/* Row 59: a crash that would leave a core, of a process that may be the first of its namespace. */
static void crash(void) {
  struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
  T("raise", setrlimit(RLIMIT_CORE, &all));
  T("dumpable", prctl(PR_SET_DUMPABLE, 1));
  fflush(stdout);
  *(volatile int *)8 = 1;
}

/* Row 157: what keeps whoever counts a build's open files busy for ever, while files grow. */
static int share_and_wait(void *unused) {
  while (!unused) pause();
  return 0;
}

static void keep_busy(const char *how) {
  static char stacks[64][4096] __attribute__((aligned(16)));
  int parent = getpid();
  if (!strcmp(how, "descriptors")) {
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
    for (int i = 0; i < 300000 && dup(0) >= 0; i++) continue;
    for (int i = 3; i < 9; i++) close(i);
    for (int i = 0; i < 64; i++)
      clone(share_and_wait, stacks[i] + 4096, CLONE_FILES | CLONE_VM | SIGCHLD, NULL);
  }
  puts("busy");
  fflush(stdout);
  if (!fork()) {
    int fd = open("/build/big", O_WRONLY | O_CREAT, 0600);
    static char data[1 << 16];
    memset(data, 1, sizeof data);
    while (getppid() == parent) if (write(fd, data, sizeof data) < 0) break;
    _exit(0);
  }
  /* A long path makes a line of the table slow to write. */
  char directory[201] = "";
  memset(directory, 'd', 200);
  for (int i = 0; i < 19; i++) if (mkdir(directory, 0700) || chdir(directory)) break;
  int fd = open("f", O_RDWR | O_CREAT, 0600);
  unsigned long size = 1UL << 40;
  char *place = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
  for (;;) {
    if (strcmp(how, "mappings") || place == MAP_FAILED) { pause(); continue; }
    for (char *at = place; at < place + size; at += 8192) {
      mprotect(at, 4096, PROT_READ);
      if (at > place + (1 << 26)) mprotect(at - (1 << 26), 4096, PROT_READ | PROT_WRITE);
    }
  }
}

int main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "";
  umask(0);
  if (!strcmp(name, "input")) {
    change_input(argv[2]);
    T("nested", nested());
    change_input(argv[2]);
  }
  else if (!strcmp(name, "escape")) escape();
  else if (!strcmp(name, "pivot")) pivot();
  else if (!strcmp(name, "writable")) find_writable(argv[2]);
  else if (!strcmp(name, "ipc")) ipc(argv[2]);
  else if (!strcmp(name, "hunt")) hunt(argv[2]);
  else if (!strcmp(name, "nodes")) nodes(argv[2]);
  else if (!strcmp(name, "ids")) ids();
  else if (!strcmp(name, "leave")) leave(argv[2], argv[3]);
  else if (!strcmp(name, "deep")) deep(argv[2], argv[3], argv[4]);
  else if (!strcmp(name, "counters")) {
    counters(atol(argv[2]));
    if (argc > 3) execlp("busybox", "busybox", "sleep", argv[3], (char *)NULL);
  }
  else if (!strcmp(name, "subvolumes")) subvolumes(argv[2]);
  else if (!strcmp(name, "crash")) crash();
  else if (!strcmp(name, "busy")) keep_busy(argv[2]);
  else if (!strcmp(name, "packet")) packet();
  else if (!strcmp(name, "give")) give(argv[2], argv[3], argv[4]);
  else if (!strcmp(name, "reach")) reach(argv[2]);
  else if (!strcmp(name, "route")) route();
  else if (!strcmp(name, "key")) key(argv[2]);
  else if (!strcmp(name, "terminal")) terminal();
  else if (!strcmp(name, "set-id")) set_id(argv[2]);
  else if (!strcmp(name, "attributes")) attributes(argv[2]);
  else if (!strcmp(name, "many")) many(argv[2], argv[3]);
  else return 2;
  return 0;
}
