"""The socket that a daemon listens on: made by us, or handed down by systemd."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, MutableMapping

from executor.errors import UsageError
from executor.store.descriptors import make_directories

_FIRST_FD = 3
_BACKLOG = 1024
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def handed_down(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Listening sockets of systemd's (``LISTEN_FDS``), if they are meant for this process."""
    count, pid = environ.pop("LISTEN_FDS", "0"), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for descriptor in range(_FIRST_FD, _FIRST_FD + int(count)):
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - its meaning is in its name
        listener = socket.socket(fileno=descriptor)
        if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM:
            raise UsageError(f"descriptor {descriptor} is no unix stream socket")
        sockets.append(listener)
    return sockets


def listen(path: str) -> socket.socket:
    """A socket at an absolute path, of any length, that everybody may connect to (mode 0666).

    It appears at once, complete, in the place of an old one; the directory is made if need be.
    Raises ``OSError``, and ``UsageError`` where something else than a socket is there.
    """
    directory, name = os.path.split(path)
    make_directories(directory)
    directory_fd = os.open(directory, _DIRECTORY)
    temporary = f".s{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _require_socket_or_nothing(directory_fd, name, path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory_fd)
        # An address holds 107 bytes; this way the directory may be of any length.
        listener.bind(f"/proc/self/fd/{directory_fd}/{temporary}")
        listener.listen(_BACKLOG)
        os.chmod(f"/proc/self/fd/{directory_fd}/{temporary}", 0o666)
        os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    except BaseException:
        listener.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory_fd)
        raise
    finally:
        os.close(directory_fd)
    return listener


def _require_socket_or_nothing(directory_fd: int, name: str, path: str) -> None:
    try:
        mode = os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if mode & 0o170000 != 0o140000:
        raise UsageError(f"'{path}' exists and is no socket")


def connect(path: str) -> socket.socket:
    """Connect to a socket at a path of any length. Raises ``OSError``."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        connection.connect(f"/proc/self/fd/{descriptor}")
    except BaseException:
        connection.close()
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return connection


def notify(environ: Mapping[str, str], state: str) -> None:
    """Tell systemd how we are (``sd_notify``), where it wants to know."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection,
    ):
        connection.sendto(state.encode(), address.replace("@", "\0", 1))
