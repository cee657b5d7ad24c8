/* Makes system calls that a build must not succeed with; prints a name and an errno a line. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *name, long result) {
  printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "OK");
}
#define T(name, call) (errno = 0, say(name, (long)(call)))

static long int80(long number, long first, long second, long third) {
  long result;
  __asm__ volatile("int $0x80"
                   : "=a"(result)
                   : "a"(number), "b"(first), "c"(second), "d"(third)
                   : "memory", "r8", "r9", "r10", "r11");
  if (result < 0) { errno = -result; return -1; }
  return result;
}

int main(void) {
  char *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  char value[16] = {0};
  int stop[2];
  strcpy(low, "f");
  close(open("f", O_CREAT | O_WRONLY, 0644));
  T("chmod_plain", chmod("f", 0755));
  T("chmod_sticky", chmod("f", 01777));
  T("chmod_suid", chmod("f", 04755));
  T("chmod_sgid", chmod("f", 02755));
  T("chmod_suid_high", syscall(SYS_chmod, "f", 0xffffffff00000000UL | 04755));
  T("fchmodat_suid", syscall(SYS_fchmodat, AT_FDCWD, "f", 06755));
  T("fchmodat2_suid", syscall(452, AT_FDCWD, "f", 04755, 0));
  T("fchmodat2_plain", syscall(452, AT_FDCWD, "f", 0755, 0));
  T("chmod_suid_i386", int80(15, (long)low, 06755, 0));
  T("chmod_plain_i386", int80(15, (long)low, 0755, 0));
  T("open_suid", open("s", O_CREAT | O_WRONLY, 04755));
  T("open_suid_i386", int80(5, (long)low, O_CREAT | O_WRONLY, 04755));
  T("open_unused_mode", syscall(SYS_openat, AT_FDCWD, "f", O_RDONLY, 06777));
  T("tmpfile_suid", open(".", O_TMPFILE | O_WRONLY, 04755));
  T("creat_suid", creat("s", 04755));
  T("mknod_suid", mknod("s", S_IFREG | 04755, 0));
  T("openat2", syscall(437, AT_FDCWD, "f", value, 24));
  T("setxattr", syscall(SYS_setxattr, "f", "user.x", "1", 1, 0));
  T("getxattr", syscall(SYS_getxattr, "f", "user.x", value, 8));
  T("setxattrat", syscall(463, AT_FDCWD, "f", 0, "user.x", value, 16));
  T("io_uring", syscall(425, 1, value));
  T("keyctl", syscall(SYS_keyctl, 0, -3, 0));
  T("bpf", syscall(SYS_bpf, 0, value, 16));
  T("perf", syscall(SYS_perf_event_open, value, 0, -1, -1, 0));
  T("userfaultfd", syscall(SYS_userfaultfd, 0));
  T("vsock", socket(40, SOCK_STREAM, 0));
  T("packet", socket(AF_PACKET, SOCK_RAW, 0));
  T("alg", socket(AF_ALG, SOCK_SEQPACKET, 0));
  T("unix_by_number_i386", int80(359, 1, 1, 0));
  T("unix_by_socketcall", int80(102, 1, (long)memcpy(low + 64, (int[]){1, 1, 0}, 12), 0));
  T("inet", socket(AF_INET, SOCK_STREAM, 0));
  T("tiocsti", ioctl(0, 0x5412, "x"));
  T("tiocsti_high", syscall(SYS_ioctl, 0, 0xffffffff00005412UL, "x"));
  T("mount", mount("x", "/tmp", "tmpfs", 0, 0));
  T("umount_proc", umount2("/proc", 0));
  T("mknod_null", mknod("null", S_IFCHR | 0666, 0x103));
  T("sethostname", sethostname("x", 1));
  T("core_pattern", open("/proc/sys/kernel/core_pattern", O_WRONLY));
  T("sysrq", open("/proc/sysrq-trigger", O_WRONLY));
  T("parent_mem", open("/proc/1/root/etc/shadow", O_RDONLY));
  T("new_privileges", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ? 0 : -1);
  if (pipe(stop) == 0 && fork() == 0) {
    T("nested_user", unshare(CLONE_NEWUSER | CLONE_NEWNS));
    T("nested_tmpfs", mount("x", "/tmp", "tmpfs", 0, 0));
    T("nested_umount_store", umount2("/nix/store", MNT_DETACH));
    T("nested_umount_input", umount2("/nix/store/input", 0));
    T("nested_remount", mount("", "/nix/store/input", "", MS_REMOUNT | MS_BIND, 0));
    T("nested_write", open("/nix/store/input/file", O_WRONLY));
    fflush(stdout);
    _exit(0);
  }
  fflush(stdout);
  wait(0);
  return 0;
}
