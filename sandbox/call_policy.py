"""What a build may ask of the kernel, by the names of system calls. Policy, no mechanism.

Whatever is named nowhere here doesn't exist in a build (ENOSYS), as if the kernel were older:
programs fall back. So it is for the calls that have been a way out before, or that are large
and of no use to a build: io_uring, bpf, perf_event_open, userfaultfd, the keyrings, modules, kexec,
open_by_handle_at, openat2 (its mode lies behind a pointer, where a filter can't look), modify_ldt
and vm86, what tells of the host (ustat, sysfs, lookup_dcookie, lsm_*, listmount, cachestat), and
everything that is newer than this list. ``docs/security.md`` has the reasons, one by one.
"""

from __future__ import annotations

_FILES = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek _llseek close
    close_range access faccessat faccessat2 stat fstat lstat newfstatat stat64 fstat64 lstat64
    fstatat64 oldstat oldfstat oldlstat statx statfs fstatfs statfs64 fstatfs64 readlink readlinkat
    getdents getdents64 readdir rename renameat renameat2 link linkat unlink unlinkat symlink
    symlinkat rmdir truncate ftruncate truncate64 ftruncate64 fallocate chown fchown lchown
    fchownat chown32 fchown32 lchown32 utime utimes futimesat utimensat utimensat_time64 umask
    chdir fchdir getcwd fcntl fcntl64 flock fsync fdatasync sync syncfs sync_file_range readahead
    fadvise64 fadvise64_64 sendfile sendfile64 copy_file_range splice tee vmsplice dup dup2 dup3
    pipe pipe2 name_to_handle_at inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
    removexattr lremovexattr fremovexattr removexattrat io_setup io_destroy io_submit io_cancel
    io_getevents io_pgetevents io_pgetevents_time64
"""
# The kernel ignores set-id bits in the mode of a new directory, so there is nothing to refuse.
_DIRECTORIES = "mkdir mkdirat"

_WAITING = """
    select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_create epoll_create1
    epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd signalfd4
    timerfd_create timerfd_settime timerfd_gettime timerfd_settime64 timerfd_gettime64
"""

_MEMORY = """
    mmap mmap2 munmap mremap mprotect msync madvise mincore brk mlock mlock2 munlock mlockall
    munlockall remap_file_pages memfd_create memfd_secret pkey_mprotect pkey_alloc pkey_free
    map_shadow_stack mseal mbind set_mempolicy get_mempolicy set_mempolicy_home_node migrate_pages
    move_pages
"""

_PROCESSES = """
    fork vfork clone clone3 execve execveat exit exit_group wait4 waitid waitpid getpid getppid
    gettid getpgid getpgrp setpgid getsid setsid set_tid_address restart_syscall getrusage
    getrlimit ugetrlimit setrlimit prlimit64 getpriority setpriority nice personality prctl
    arch_prctl set_thread_area get_thread_area seccomp landlock_create_ruleset landlock_add_rule
    landlock_restrict_self pidfd_open pidfd_send_signal pidfd_getfd ptrace process_vm_readv
    process_vm_writev process_madvise process_mrelease kcmp uretprobe uprobe uname olduname
    oldolduname sysinfo times getcpu getrandom membarrier rseq ioprio_get ioprio_set sched_yield
    sched_setparam sched_getparam sched_setscheduler sched_getscheduler sched_setattr sched_getattr
    sched_setaffinity sched_getaffinity sched_get_priority_max sched_get_priority_min
    sched_rr_get_interval sched_rr_get_interval_time64
"""

_IDENTITY = """
    getuid geteuid getgid getegid getgroups getresuid getresgid setuid setgid setreuid setregid
    setresuid setresgid setgroups setfsuid setfsgid getuid32 geteuid32 getgid32 getegid32
    getgroups32 getresuid32 getresgid32 setuid32 setgid32 setreuid32 setregid32 setresuid32
    setresgid32 setgroups32 setfsuid32 setfsgid32 capget capset
"""

_SIGNALS = """
    kill tkill tgkill rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack signal
    sigaction sigreturn sigpending sigprocmask sigsuspend sgetmask ssetmask pause alarm
"""

_TIME = """
    time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep
    clock_nanosleep_time64 nanosleep getitimer setitimer timer_create timer_settime timer_gettime
    timer_getoverrun timer_delete timer_settime64 timer_gettime64 adjtimex clock_adjtime
    clock_adjtime64
"""

_EXCHANGE = """
    futex futex_time64 futex_waitv futex_wake futex_wait futex_requeue set_robust_list
    get_robust_list shmget shmat shmdt shmctl semget semop semtimedop semtimedop_time64 semctl
    msgget msgsnd msgrcv msgctl ipc mq_open mq_unlink mq_timedsend mq_timedsend_time64
    mq_timedreceive mq_timedreceive_time64 mq_notify mq_getsetattr bind connect listen accept
    accept4 getsockname getpeername sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg
    recvmmsg_time64 setsockopt getsockopt shutdown
"""

# What a build may do only in namespaces of its own; the kernel sees to that. Nested builds, the
# test suites of container tools, and bubblewrap in builds need them.
_NESTED = """
    unshare setns mount umount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree
    move_mount mount_setattr sethostname setdomainname reboot
"""

ALLOWED = frozenset(
    " ".join(
        (
            *(_FILES, _DIRECTORIES, _WAITING, _MEMORY, _PROCESSES, _IDENTITY, _SIGNALS, _TIME),
            *(_EXCHANGE, _NESTED),
        )
    ).split()
)

# Only root of the machine could do these, in no namespace of a build's own: the kernel's answer
# to everybody else, without the kernel being asked (and without the exceptions that it makes,
# such as to read the log of the kernel, or to watch files by their handles).
_PRIVILEGED = """
    acct clock_settime clock_settime64 settimeofday stime swapon swapoff quotactl quotactl_fd syslog
    vhangup iopl ioperm fanotify_init fanotify_mark
"""
PRIVILEGED = frozenset(_PRIVILEGED.split())

# As on a file system that has none. Removing what can't be there is left to the kernel, as by Nix.
_EXTENDED_ATTRIBUTES = """
    getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat
    listxattr llistxattr flistxattr listxattrat
"""
EXTENDED_ATTRIBUTES = frozenset(_EXTENDED_ATTRIBUTES.split())

# Calls with a mode, and where it stands among the arguments: no setuid or setgid bit.
MODES = {
    "chmod": 1,
    "fchmod": 1,
    "fchmodat": 2,
    "fchmodat2": 2,
    "creat": 1,
    "mknod": 1,
    "mknodat": 2,
}
# Calls whose mode counts only when flags ask for a new file: where the flags stand, and the mode.
OPENING = {"open": (1, 2), "openat": (2, 3)}

# Address families: unspecified, unix, IPv4, IPv6, netlink. All others (AF_VSOCK reaches the
# hypervisor) don't exist; packet sockets do, for root.
FAMILIES = (1, 2, 10, 16, 0)
PRIVILEGED_FAMILIES = (17,)
# Families with a type of socket that is for root, too: SOCK_PACKET of IPv4, by which the kernel
# gives a packet socket, with all flags that a type may have (SOCK_NONBLOCK, SOCK_CLOEXEC).
PRIVILEGED_TYPES = {2: (0o12, 0o4012, 0o2000012, 0o2004012)}
# The calls behind socketcall(2) that name a family, for which see above.
SOCKETCALLS_WITH_FAMILY = (1, 8)

# Typing into a terminal as if at its keyboard, its console, and its line discipline:
# TIOCSTI, TIOCLINUX, TIOCSETD.
PRIVILEGED_IOCTLS = (0x5412, 0x541C, 0x5423)
# What would outlive the build, on file systems that have it: keys and policies of encryption, and
# verity, on its outputs; and subvolumes, which, once read-only, can't be deleted as files can.
# FS_IOC_SET_ENCRYPTION_POLICY, FS_IOC_ADD_ENCRYPTION_KEY, FS_IOC_ENABLE_VERITY; of btrfs
# BTRFS_IOC_SNAP_CREATE, _SUBVOL_CREATE, _SNAP_CREATE_V2, _SUBVOL_CREATE_V2, _SUBVOL_SETFLAGS.
UNSUPPORTED_IOCTLS = (
    *(0x800C6613, 0xC0506617, 0x40806685),
    *(0x50009401, 0x5000940E, 0x50009417, 0x50009418, 0x4008941A),
)
