"""Opening files and directories below a descriptor, without ever following a symbolic link.

Everything here takes the descriptor of an already trusted directory and one name in it. Several
of these calls run as root on trees that a hostile program has written.
"""

import errno
import os
import stat

from executor.store.syscalls import open_beneath

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: should the name have become a FIFO since it was looked at, open returns at once.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def fd_path(fd: int) -> str:
    """A path that reaches the object behind `fd` itself, for calls that take no descriptor."""
    return f"/proc/self/fd/{fd}"


def path_below(directory_fd: int, name: bytes) -> bytes:
    """A path of `name` in an open directory; the caller must use it without following links."""
    return b"/proc/self/fd/%d/%b" % (directory_fd, name)


def open_directory(parent_fd: int, name: bytes) -> int:
    """Open a directory of any mode; raises OSError (ENOTDIR or ELOOP if it is something else)."""
    return _open_of_any_mode(parent_fd, name, DIRECTORY_FLAGS, 0o700)


def open_file(parent_fd: int, name: bytes, extra_flags: int = 0) -> int:
    """Open a regular file of any mode for reading; the caller checks the type with fstat."""
    return _open_of_any_mode(parent_fd, name, FILE_FLAGS | extra_flags, 0o400)


def _open_of_any_mode(parent_fd: int, name: bytes, flags: int, needed: int) -> int:
    """Open; where an owner without privilege is locked out by the mode, add bits and try again."""
    try:
        return os.open(name, flags, dir_fd=parent_fd)
    except PermissionError:
        path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        status = os.fstat(path_fd)
        # Links and devices are none of our business; and a root without capabilities must not
        # open up what belongs to somebody else.
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        if status.st_uid != os.geteuid() or status.st_mode & needed == needed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        # fchmod refuses O_PATH descriptors; the link in /proc leads to this very inode.
        os.chmod(fd_path(path_fd), stat.S_IMODE(status.st_mode) | needed)
        return os.open(name, flags, dir_fd=parent_fd)
    finally:
        os.close(path_fd)


def make_directories(path: str, mode: int = 0o755) -> None:
    """Make a directory and those above it that are missing, with this mode whatever the umask is.

    What is there already stays as it is. Raises OSError.
    """
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path.rstrip("/"))
    for each in reversed(missing):
        try:
            os.mkdir(each, mode)
        except FileExistsError:
            if os.path.isdir(each):
                continue  # somebody else was faster
            raise
        # The directory itself, by a descriptor that no mode keeps from us and no link leads away.
        fd = os.open(each, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
                os.chmod(fd_path(fd), mode)
        finally:
            os.close(fd)


def open_directory_same_mount(parent_fd: int, name: bytes) -> int:
    """Open a subdirectory that lies on the same mount as its parent.

    Raises OSError with EXDEV for a mount point, bind mounts of the same file system included.
    """
    try:
        return open_beneath(parent_fd, name, DIRECTORY_FLAGS)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EXDEV):
            raise
    # No openat2 (or a container's filter on it), or a directory whose mode locks us out. The kernel
    # also takes a directory that is renamed meanwhile for one of elsewhere: the numbers tell.
    return _open_comparing_mounts(parent_fd, name)


def _open_comparing_mounts(parent_fd: int, name: bytes) -> int:
    fd = open_directory(parent_fd, name)
    try:
        if mount_id(fd) != mount_id(parent_fd):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def mount_id(fd: int) -> bytes:
    """The number of the mount behind a descriptor; its file system isn't asked."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        for line in info:
            if line.startswith(b"mnt_id:"):
                return line.split()[1]
    raise OSError(errno.EIO, "no mount id in /proc/self/fdinfo")


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything, however often the kernel takes less."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def identity(status: os.stat_result) -> tuple[int, int]:
    """What tells one inode from another: device and inode number."""
    return status.st_dev, status.st_ino


def display(path: bytes) -> str:
    """A path for a message: printable, control characters and invalid UTF-8 escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
