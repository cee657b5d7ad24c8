"""A fixed-output builder gives an open file of its output away over the host's network.

That is what ``fod-network = host`` lets it see; tests/hostile/test_network.py has ``isolated``.

It may not connect to abstract sockets of the host, but the host may connect to its own. Upstream:
nixos/ca-fd-leak.
"""

from __future__ import annotations

import os
import socket
import threading

import pytest

from tests.build.conftest import HOST_PROGRAMS, Workshop, fixed, wait_until
from tests.functional.conftest import workshop as workshop

pytestmark = pytest.mark.root

_SMUGGLER = """
import os, socket
name = "\\0" + os.environ["meeting"]
try:
    socket.socket(socket.AF_UNIX).connect(name + "-outside")
except OSError as error:
    print("connecting out:", error.strerror)
here = socket.socket(socket.AF_UNIX)
here.bind(name)
here.listen()
there, _ = here.accept()
file = os.open(os.environ["out"], os.O_RDWR | os.O_CREAT, 0o644)
os.write(file, b"good\\n")
socket.send_fds(there, [b"x"], [file])
there.recv(1)
"""


def test_a_descriptor_that_was_given_away_writes_into_nothing(workshop: Workshop) -> None:
    paths = (*workshop.settings.sandbox_paths, *HOST_PROGRAMS)
    workshop.change(sandbox_paths=paths, fod_network="host")
    name = f"executor-test-{os.getpid()}"
    drv = workshop.make(
        "smuggled",
        f"exec /usr/bin/python3 -c '{_SMUGGLER}'",
        outputs={"out": fixed(b"good\n")},
        env={"meeting": name},
    )
    received: list[int] = []

    def accomplice() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            wait_until(lambda: connection.connect_ex(f"\0{name}") == 0, "the builder")
            received.extend(socket.recv_fds(connection, 1, 1)[1])
            connection.sendall(b"x")

    with socket.socket(socket.AF_UNIX) as outside:
        outside.bind(f"\0{name}-outside")
        outside.listen()
        thread = threading.Thread(target=accomplice)
        thread.start()
        result = workshop.build(drv).result
        thread.join(30)
    assert result.success, result.log_tail
    log = workshop.cli("log", drv.text).stdout
    assert log == "connecting out: Operation not permitted\n"
    (file,) = received
    try:
        # The file is still open, and may be written to; it is none of the store's.
        os.pwrite(file, b"evil\n", 0)
        os.truncate(file, 5)
        assert os.fstat(file).st_ino != workshop.real(drv.out).stat().st_ino
    finally:
        os.close(file)
    assert workshop.real(drv.out).read_bytes() == b"good\n"
    verified = workshop.cli("verify", "--check-contents")
    assert verified.returncode == 0, verified.stderr
