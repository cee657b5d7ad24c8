"""What compilers, test suites, language runtimes and nested sandboxes do, as a builder.

Runs inside, by the host's Python, with nothing but its standard library; prints ``what: answer``,
where an answer is ``ok`` or an errno. Nothing of it is an attack: it is what must work, or what a
program asks for and does without.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import inspect
import mmap
import multiprocessing
import multiprocessing.shared_memory
import os
import pty
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
BUFFER = ctypes.create_string_buffer(4096)


def call(number: int, *arguments: object) -> int:
    """A system call by its number."""
    return checked(LIBC.syscall(ctypes.c_long(number), *map(_argument, arguments)))


def _argument(value: object) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


def checked(result: int) -> int:
    """The result of a function of the C library, or its error."""
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def run(*command: str, text: str = "") -> str:
    """A program of the host, which has to succeed."""
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"{command[0]} {done.returncode} {done.stderr[-200:]!r}"
    return done.stdout


def file(name: str, content: str = "content\n") -> str:
    with open(name, "w", encoding="utf-8") as opened:
        opened.write(content)
    return name


class Compilers:
    def c_with_lto_by_make(self) -> None:
        for name in "abcd":
            file(f"{name}.c", f"int {name}(int x) {{ return x + 1; }}\n")
        file("main.c", "int a(int);int d(int);int main(void) { return a(1) + d(-3); }\n")
        rule = "main: main.o a.o b.o c.o d.o\n\tgcc -flto=2 -O2 -pipe -o $@ $^\n"
        file("Makefile", f"{rule}%.o: %.c\n\tgcc -flto -O2 -pipe -g -c -o $@ $<\n")
        run("make", "-j4")
        run("./main")

    def cxx_with_threads_and_exceptions(self) -> None:
        text = (
            "#include <atomic>\n#include <stdexcept>\n#include <thread>\nstd::atomic<int> n;\n"
            'int main() { std::thread t([] { try { throw std::runtime_error("x"); }'
            " catch (...) { n = 1; } }); t.join(); return n - 1; }\n"
        )
        run("g++", "-pipe", "-O1", "-pthread", "-o", "threads", file("threads.cc", text))
        run("./threads")

    def a_32_bit_program_by_the_64_bit_compiler(self) -> None:
        run("gcc", "-m32", "-nostdlib", "-static", "-o", "small", file("small.c", _SMALL))
        run("./small")

    def an_archive_and_a_shared_library(self) -> None:
        run("gcc", "-shared", "-fPIC", "-o", "libs.so", file("s.c", "int s(void) { return 7; }\n"))
        assert ctypes.CDLL("./libs.so").s() == 7
        run("ar", "rcs", "libs.a", "libs.so")
        run("strip", "libs.so")

    def a_configure_script_s_habits(self) -> None:
        run("sh", "-c", "echo x > t && ln t u && ln -s t v && mv u w && cp -p w y && rm t v w y")

    def a_tarball_with_links_and_modes(self) -> None:
        os.mkdir("tree")
        os.symlink("x", file("tree/x") + "l")
        run("sh", "-c", "tar -cf - tree | (mkdir copy && cd copy && tar -xpf -)")
        run("cp", "-a", "--reflink=auto", "tree", "tree2")

    def git(self) -> None:
        options = ("-c", "user.name=x", "-c", "user.email=x@y")
        run("git", "init", "-q", "repository")
        run("git", "-C", "repository", *options, "commit", "-q", "--allow-empty", "-m", "x")
        run("git", "-C", "repository", "gc", "-q")

    def perl_forks_and_pipes(self) -> None:
        text = "pipe(R, W); if (fork) { close W; print <R>; wait } else { print W 'x'; exit 0 }"
        assert run("perl", "-e", text) == "x"

    def busybox_pipes(self) -> None:
        assert run("busybox", "sh", "-c", "seq 9 | sort -r | head -n1") == "9\n"


_SMALL = 'void _start(void) { __asm__ volatile("int $0x80" :: "a"(1), "b"(0)); for (;;); }\n'


class Runtimes:
    def processes_of_multiprocessing(self) -> None:
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]

    def spawned_processes_with_a_queue(self) -> None:
        context = multiprocessing.get_context("forkserver")
        queue = context.SimpleQueue()
        child = context.Process(target=abs, args=(1,))
        child.start()
        child.join()
        assert queue.empty()

    def shared_memory(self) -> None:
        made = multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
        assert made.buf is not None
        made.buf[0] = 1
        made.close()
        made.unlink()

    def threads_with_locks(self) -> None:
        total, lock = [0], threading.Lock()

        def add() -> None:
            for _ in range(1000):
                with lock:
                    total[0] += 1

        threads = [threading.Thread(target=add) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert total == [16000]

    def asyncio_with_servers_and_processes(self) -> None:
        async def go() -> None:
            async def answer(_reader: object, writer: asyncio.StreamWriter) -> None:
                writer.write(b"hello")
                writer.close()

            for starting in (
                asyncio.start_server(answer, "127.0.0.1", 0),
                asyncio.start_unix_server(answer, "socket"),
            ):
                server = await starting
                name = server.sockets[0].getsockname()
                connect = (
                    asyncio.open_connection(*name)
                    if isinstance(name, tuple)
                    else asyncio.open_unix_connection(name)
                )
                reader, _writer = await connect
                assert await reader.read() == b"hello"
                server.close()
            process = await asyncio.create_subprocess_exec("true")
            assert await process.wait() == 0

        asyncio.run(go())

    def terminals(self) -> None:
        pid, master = pty.fork()
        if pid == 0:
            os.execv("/usr/bin/tty", ["tty"])
        assert os.read(master, 100).startswith(b"/dev/pts/")
        os.waitpid(pid, 0)

    def memory_that_is_written_and_executed(self) -> None:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\xb8\x2a\x00\x00\x00\xc3")
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        assert ctypes.CFUNCTYPE(ctypes.c_int)(address)() == 42

    def posix_spawn_and_vfork(self) -> None:
        assert os.waitpid(os.posix_spawn("/usr/bin/true", ["true"], {}), 0)[1] == 0

    def timers_and_signals(self) -> None:
        seen: list[int] = []
        signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.1)
        assert seen

    def loopback_of_both_protocols(self) -> None:
        for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
            server = socket.create_server((host, 0), family=family)
            socket.create_connection(server.getsockname()[:2]).close()

    def names_of_interfaces_by_netlink(self) -> None:
        assert socket.if_nameindex()


class Kernel:
    """Calls that libraries make, with a way around where a kernel lacks them, or without."""

    def epoll(self) -> None:
        call(291, 0)

    def eventfd(self) -> None:
        os.eventfd(0)

    def timerfd(self) -> None:
        call(283, 1, 0)

    def signalfd(self) -> None:
        call(289, -1, BUFFER, 8, 0)

    def inotify(self) -> None:
        checked(LIBC.inotify_add_watch(checked(LIBC.inotify_init1(0)), b".", 0x100))

    def posix_message_queues(self) -> None:
        checked(LIBC.mq_open(b"/queue", os.O_CREAT | os.O_RDWR, 0o600, None))
        checked(LIBC.mq_unlink(b"/queue"))

    def sysv_shared_memory_semaphores_and_queues(self) -> None:
        checked(LIBC.shmget(0, 4096, 0o600))
        checked(LIBC.semget(0, 1, 0o600))
        checked(LIBC.msgget(0, 0o600))

    def memfd_with_seals(self) -> None:
        made = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        fcntl.fcntl(made, 1033, 1)

    def memfd_secret(self) -> None:
        call(447, 0)

    def robust_lists(self) -> None:
        call(274, 0, BUFFER, ctypes.byref(ctypes.c_long()))

    def futex_waitv(self) -> None:
        expect(errno.EINVAL, lambda: call(449, None, 0, 0, None, 0))

    def membarrier(self) -> None:
        call(324, 0, 0, 0)
        call(324, 16, 0, 0)

    def rseq(self) -> None:
        expect(errno.EINVAL, lambda: call(334, BUFFER, 1, 0, 0))

    def clone3(self) -> None:
        expect(errno.EINVAL, lambda: call(435, BUFFER, 1))

    def pidfd(self) -> None:
        child = os.fork()
        if child == 0:
            signal.pause()
        descriptor = os.pidfd_open(child)
        call(438, descriptor, 0, 0)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.waitid(os.P_PIDFD, descriptor, os.WEXITED)

    def close_range(self) -> None:
        call(436, 900, 1000, 0)

    def execveat(self) -> None:
        if os.fork() == 0:
            opened = os.open("/usr/bin/true", os.O_RDONLY)
            call(322, opened, b"", ctypes.byref(ctypes.c_char_p(b"true")), None, 0x1000)
        assert os.wait()[1] == 0

    def getrandom(self) -> None:
        os.getrandom(16)

    def prlimit(self) -> None:
        resource.prlimit(0, resource.RLIMIT_NOFILE, (512, 1024))

    def nice_and_priorities(self) -> None:
        os.setpriority(os.PRIO_PROCESS, 0, 5)
        call(251, 1, 0, (3 << 13))

    def sessions_and_groups(self) -> None:
        if os.fork() == 0:
            os.setsid()
            os._exit(0)
        assert os.wait()[1] == 0

    def schedulers(self) -> None:
        os.sched_setaffinity(0, os.sched_getaffinity(0))
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    def real_time_scheduler(self) -> None:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    def sched_getattr(self) -> None:
        call(315, 0, BUFFER, 56, 0)

    def memory_policy(self) -> None:
        call(238, 0, None, 0)

    def memory_locks(self) -> None:
        call(149, BUFFER, 4096)

    def memory_protection_keys(self) -> None:
        with_fallback(lambda: call(330, 0, 0), errno.ENOSPC, errno.EINVAL)

    def mseal(self) -> None:
        expect(errno.EINVAL, lambda: call(462, 1, 4096, 0))

    def personality_without_random_addresses(self) -> None:
        run("setarch", "-R", "true")

    def strace(self) -> None:
        run("strace", "-f", "-o", "/dev/null", "sh", "-c", "true; true")

    def gdb(self) -> None:
        run("gdb", "-nx", "-batch", "-ex", "run", "/usr/bin/true")

    def reading_a_child_s_memory(self) -> None:
        child = os.fork()
        if child == 0:
            signal.pause()
        local = (ctypes.c_long * 2)(ctypes.addressof(BUFFER), 8)
        call(310, child, local, 1, local, 1, 0)
        os.kill(child, 9)
        os.waitpid(child, 0)

    def landlock(self) -> None:
        attribute = ctypes.c_uint64(1 << 1)
        ruleset = call(444, ctypes.byref(attribute), 8, 0)
        if os.fork() == 0:
            call(157, 38, 1, 0, 0, 0)
            call(446, ruleset, 0)
            os._exit(0)
        assert os.wait()[1] == 0

    def seccomp_within_seccomp(self) -> None:
        instruction = (ctypes.c_uint64 * 1)(0x7FFF0000 << 32 | 6)
        program = (ctypes.c_uint64 * 2)(1, ctypes.addressof(instruction))
        if os.fork() == 0:
            call(157, 38, 1, 0, 0, 0)
            call(317, 1, 0, program)
            os._exit(0)
        assert os.wait()[1] == 0

    def seccomp_listener(self) -> None:
        instruction = (ctypes.c_uint64 * 1)(0x7FFF0000 << 32 | 6)
        program = (ctypes.c_uint64 * 2)(1, ctypes.addressof(instruction))
        if os.fork() == 0:
            call(157, 38, 1, 0, 0, 0)
            call(317, 1, 8, program)
            os._exit(0)
        assert os.wait()[1] == 0


class Files:
    def sendfile_splice_tee_and_copy_file_range(self) -> None:
        source, target = os.open(file("source"), os.O_RDONLY), os.open("t", os.O_RDWR | os.O_CREAT)
        assert os.sendfile(target, source, 0, 4) == 4
        assert os.copy_file_range(source, target, 4, 0, 4) == 4
        read, write = os.pipe()
        assert os.splice(source, write, 4, offset_src=0) == 4
        call(276, read, os.pipe()[1], 4, 0)

    def reflinks_or_copies(self) -> None:
        target = os.open("r", os.O_RDWR | os.O_CREAT)
        with_fallback(
            lambda: fcntl.ioctl(target, 0x40049409, os.open(file("s"), os.O_RDONLY)),
            *(errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY),
        )

    def fallocate_and_holes(self) -> None:
        opened = os.open("f", os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(opened, 0, 8192)
        call(285, opened, 3, 0, 4096)

    def files_without_a_name(self) -> None:
        opened = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
        call(265, AT_FDCWD, f"/proc/self/fd/{opened}".encode(), AT_FDCWD, b"named", 0x400)

    def exchanging_renames(self) -> None:
        call(316, AT_FDCWD, file("x").encode(), AT_FDCWD, file("y").encode(), 2)
        call(316, AT_FDCWD, b"x", AT_FDCWD, b"z", 1)

    def statx(self) -> None:
        call(332, AT_FDCWD, b".", 0, 0xFFF, BUFFER)

    def faccessat2(self) -> None:
        call(439, AT_FDCWD, b".", 4, 0x200)

    def fchmodat2(self) -> None:
        call(452, AT_FDCWD, file("m").encode(), 0o600, 0)

    def openat2(self) -> None:
        how = (ctypes.c_uint64 * 3)(os.O_RDONLY, 0, 0)
        call(437, AT_FDCWD, b".", how, 24)

    def locks(self) -> None:
        opened = os.open("lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(opened, fcntl.LOCK_EX)
        fcntl.lockf(opened, fcntl.LOCK_EX)

    def asynchronous_reads_and_writes(self) -> None:
        call(206, 8, ctypes.byref(ctypes.c_ulong()))

    def io_uring(self) -> None:
        call(425, 1, BUFFER)

    def asking_for_attributes(self) -> None:
        with_fallback(lambda: os.getxattr(file("g"), "user.x"), errno.EOPNOTSUPP, errno.ENODATA)

    def setting_attributes(self) -> None:
        os.setxattr(file("g"), "user.x", b"1")

    def listing_attributes(self) -> None:
        os.listxattr(file("l"))

    def set_id_bits_by_chmod(self) -> None:
        os.chmod(file("c"), 0o4755)

    def set_id_bits_at_creation(self) -> None:
        os.open("u", os.O_CREAT | os.O_WRONLY, 0o4755)

    def set_group_bit_of_a_directory(self) -> None:
        os.mkdir("d")
        os.chmod("d", 0o2755)

    def devices(self) -> None:
        os.mknod("null", 0o20666, os.makedev(1, 3))

    def whiteouts_of_overlays(self) -> None:
        os.mknod("white", 0o20000, 0)

    def handles_of_files(self) -> None:
        ctypes.memset(BUFFER, 0, 8)
        BUFFER[0] = b"\x40"
        with_fallback(
            lambda: call(303, AT_FDCWD, b".", BUFFER, ctypes.byref(ctypes.c_int()), 0),
            errno.EOPNOTSUPP,
            errno.EOVERFLOW,
        )

    def core_dumps(self) -> None:
        call(302, 0, resource.RLIMIT_CORE, (ctypes.c_uint64 * 2)(4096, 4096), None)


class Nested:
    def a_user_namespace_with_mounts(self) -> None:
        run("unshare", "-Urm", "sh", "-c", "mount -t tmpfs x /tmp && touch /tmp/x")

    def a_process_namespace_with_its_proc(self) -> None:
        run("unshare", "-Urmpf", "--mount-proc", "sh", "-c", "test $$ = 1")

    def a_network_namespace(self) -> None:
        run("unshare", "-Urn", "sh", "-c", "ip link set lo up")

    def a_root_of_its_own(self) -> None:
        script = (
            "mkdir -p new && mount -t tmpfs x new && mkdir new/usr new/old &&"
            " ln -s usr/lib usr/lib64 new && mount --rbind /usr new/usr && cd new &&"
            " pivot_root . old && /usr/bin/test -d /old/proc"
        )
        run("unshare", "-Urm", "sh", "-c", script)

    def an_overlay(self) -> None:
        script = "mkdir l u w m && mount -t overlay -o lowerdir=l,upperdir=u,workdir=w o m"
        run("unshare", "-Urm", "sh", "-c", f"mount -t tmpfs x /tmp && cd /tmp && {script}")

    def bubblewrap(self) -> None:
        links = ("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64")
        new = ("--unshare-all", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp")
        run("bwrap", "--ro-bind", "/usr", "/usr", *links, *new, "/usr/bin/true")

    def an_i686_personality(self) -> None:
        assert run("setarch", "i686", "uname", "-m").strip() == "i686"

    def a_host_name(self) -> None:
        run("unshare", "-Uru", "sh", "-c", "hostname box")


class Seldom:
    def user_mode_page_faults(self) -> None:
        call(323, 1)

    def keyrings(self) -> None:
        call(250, 0, -3, 0)

    def perf(self) -> None:
        call(298, BUFFER, 0, -1, -1, 0)

    def bpf(self) -> None:
        call(321, 0, BUFFER, 16)

    def local_descriptor_tables(self) -> None:
        call(154, 0, BUFFER, 16)

    def cryptography_of_the_kernel(self) -> None:
        socket.socket(38, 5, 0)

    def virtual_machine_sockets(self) -> None:
        socket.socket(40, 1, 0)

    def packet_sockets(self) -> None:
        socket.socket(17, 3, 0)

    def the_kernel_s_log(self) -> None:
        call(103, 10, None, 0)

    def settings_of_the_clock_read(self) -> None:
        ctypes.memset(BUFFER, 0, 256)
        call(159, BUFFER)

    def cached_pages(self) -> None:
        call(451, os.open(file("p"), os.O_RDONLY), BUFFER, BUFFER, 0)

    def statmount(self) -> None:
        expect(errno.EINVAL, lambda: call(457, BUFFER, BUFFER, 512, 0))


def expect(number: int, function: Callable[[], object]) -> None:
    """The kernel has the call, and says that these arguments make no sense."""
    try:
        function()
    except OSError as error:
        if error.errno != number:
            raise


def with_fallback(function: Callable[[], object], *numbers: int) -> None:
    """What file systems and kernels differ in, and programs are used to."""
    try:
        function()
    except OSError as error:
        if error.errno not in numbers:
            raise


# What a machine may lack.
_NEEDED = {"git": "git", "gdb": "gdb", "bubblewrap": "bwrap", "strace": "strace"}


def answer_of(name: str, function: Callable[[], None]) -> str:
    if name in _NEEDED and shutil.which(_NEEDED[name]) is None:
        return "absent"
    directory = f"{os.getcwd()}/{name}"
    os.mkdir(directory)
    os.chdir(directory)
    try:
        function()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error)).replace("ENOTSUP", "EOPNOTSUPP")
    except BaseException as error:  # noqa: BLE001
        return f"{type(error).__name__} {error}"
    finally:
        os.chdir("..")
    return "ok"


def tell(name: str, function: Callable[[], None]) -> None:
    """One check in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        os.close(read)
        os.write(write, answer_of(name, function).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    _pid, status = os.waitpid(pid, 0)
    words = name.replace("_s_", "'s_").replace("_", " ")
    print(f"{words}: {said.replace(chr(10), ' ') or f'ended by {status}'}", flush=True)


def main() -> None:
    os.environ["PATH"] = "/usr/bin:/usr/sbin:/bin"
    os.environ["HOME"] = os.getcwd()
    for group in (Compilers(), Runtimes(), Kernel(), Files(), Nested(), Seldom()):
        for name in vars(type(group)):
            if not name.startswith("_") and inspect.ismethod(getattr(group, name)):
                tell(name, getattr(group, name))


if __name__ == "__main__":
    main()
    if (output := os.getenv("out")) is not None:  # noqa: SIM112
        file(output, "made\n")
    sys.exit(0)
