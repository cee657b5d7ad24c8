"""External builds: a caller as stock Nix 2.34 is one, and callers that are up to no good."""

from __future__ import annotations

import contextlib
import grp
import io
import json
import os
import pwd
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from executor.errors import FormatError
from executor.formats.store_path import StoreDir
from executor.formats.wire import EndOfStreamError, WireReader
from executor.protocols.external_client import Job, follow, read_job
from executor.protocols.external_messages import (
    MAGIC,
    ended_frame,
    output_frame,
    read_request,
    write_request,
)
from executor.protocols.external_service import MOST_OF_A_USER
from tests.protocols.conftest import RawClient, number, open_directory, text
from tests.protocols.machines import PROJECT

GROUP = "nixbld"
STORE = StoreDir()
_OUT = "/nix/store/" + "1" * 32 + "-scratch"
_DEV = "/nix/store/" + "2" * 32 + "-scratch-dev"
_LOG, _STARTED, _REFUSED, _OUTPUT, _EXITED, _STOPPED = 1, 2, 3, 4, 5, 7
# Becomes the build user after its imports, because the project may lie where only root can read;
# a process that is executed by the user has its own /proc, too.
_AS_BUILD_USER = """
import ctypes, encodings.ascii, encodings.idna, encodings.latin_1, os, sys
import executor.protocols.external_client, executor.protocols.sockets
import executor.cli.external_builder_command, socket
from executor.cli.main import main
uid, gid = map(int, sys.argv[1:3])
os.setgroups([]); os.setgid(gid); os.setuid(uid)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
code = main(sys.argv[3:])
sys.stdout.flush()
os._exit(code)
"""


@dataclass
class Service:
    """A running service, its store, and what a Nix beside it would make for its builds."""

    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def socket_path(self) -> str:
        return str(self.directory / "run" / "socket")

    @property
    def real_store(self) -> Path:
        return self.directory / "root/nix/store"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def document(self, script: str, **more: Any) -> dict[str, Any]:
        """What Nix writes for a build."""
        return {
            "version": 1,
            "builder": "/bin/sh",
            "args": ["-c", script],
            "env": {"out": _OUT, "dev": _DEV, "HOME": "/homeless-shelter", "PATH": "/bin"},
            "topTmpDir": "/somewhere",
            "tmpDir": "/somewhere/build",
            "tmpDirInSandbox": "/build",
            "storeDir": "/nix/store",
            "realStoreDir": str(self.real_store),
            "system": "x86_64-linux",
            "inputPaths": [],
            "outputs": {"out": _OUT},
            **more,
        }

    def build(self, script: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        """Build as Nix would: the client runs as a build user, with its directory."""
        user = pwd.getpwnam(f"{GROUP}1")
        top = Path(subprocess.check_output(["mktemp", "-d"], cwd="/", text=True).strip())
        try:
            build = top / "build"
            build.mkdir()
            (build / ".attrs.json").write_text("{}")
            document = self.document(script, tmpDir=str(build), topTmpDir=str(top), **more)
            (top / "build.json").write_text(json.dumps(document))
            for path in (top, build, build / ".attrs.json"):
                os.chown(path, user.pw_uid, user.pw_gid)
            ids = (str(user.pw_uid), str(user.pw_gid))
            words = ("external-builder", "--socket", self.socket_path, str(top / "build.json"))
            return subprocess.run(
                [sys.executable, "-W", "error", "-c", _AS_BUILD_USER, *ids, *words],
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)},
                capture_output=True,
                timeout=60,
                check=False,
                cwd=build,
            )
        finally:
            subprocess.run(["rm", "-rf", str(top)], check=True)

    def remove(self, *paths: str) -> None:
        """What Nix does with scratch outputs in the end."""
        for path in paths:
            subprocess.run(["rm", "-rf", str(self.real_store / Path(path).name)], check=True)

    @contextlib.contextmanager
    def caller(self, uid: int | None = None, gid: int | None = None) -> Iterator[RawClient]:
        """A connection of a build user, or of somebody else: made by a process with these ids."""
        user = pwd.getpwnam(f"{GROUP}2")
        uid, gid = user.pw_uid if uid is None else uid, user.pw_gid if gid is None else gid
        ours, theirs = socket.socketpair()
        # The kernel notes who connects: a child of these ids does, and hands the socket over.
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                made = socket.socket(socket.AF_UNIX)
                made.connect(self.socket_path)
                socket.send_fds(theirs, [b"x"], [made.fileno()])
                code = 0
            finally:
                os._exit(code)
        theirs.close()
        _data, descriptors, _flags, _address = socket.recv_fds(ours, 1, 1)
        ours.close()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with socket.socket(fileno=descriptors[0]) as connection:
            connection.settimeout(30)
            yield RawClient(connection)

    def ask(self, document: dict[str, Any], files: dict[bytes, bytes] | None = None) -> Answer:
        """Ask for a build by hand."""
        with self.caller() as client:
            client.send(write_request(json.dumps(document).encode(), files or {}))
            return read_answer(client)

    def require_nothing_left(self) -> None:
        """No directory of a build is there any more, soon after its answer."""
        deadline = time.monotonic() + 4
        while left := self._leftovers():
            assert time.monotonic() < deadline, left
            time.sleep(0.02)

    def _leftovers(self) -> list[str]:
        names = [name for name in os.listdir(self.real_store) if not name.startswith(".links")]
        return [*names, *os.listdir(self.directory / "root/nix/var/nix/builds")]


@dataclass
class Answer:
    """All that the service says: what the builder printed, outputs as archives, and the end."""

    log: bytes
    outputs: dict[str, bytes]
    kind: int
    value: int | str
    started: bool


def read_answer(client: RawClient) -> Answer:
    answer = Answer(b"", {}, 0, "", started=False)
    while not answer.kind:
        match client.number():
            case 1:
                answer.log += client.data()
            case 2:
                answer.started = True
            case 4:
                name, archive = client.data().decode(), b""
                while size := client.number():
                    archive += client.exactly(size)
                answer.outputs[name] = archive
            case 5 | 6 as kind:
                answer.kind, answer.value = kind, client.number()
            case kind:
                answer.kind, answer.value = kind, client.data().decode()
    return answer


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with open_directory() as directory:
        (directory / "root").mkdir()
        (directory / "nix.conf").write_text(
            f"substituters =\nbuild-users-group = {GROUP}\ntimeout = 5\nmax-build-log-size = 9999\n"
        )
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-W", "error", "-m", "executor", "external-service"),
                    *("--store", str(directory / "root"), "--jobs", "8"),
                    *("--socket", str(directory / "run/socket")),
                ],
                env={
                    "PATH": os.environ["PATH"],
                    "NIX_CONF_DIR": str(directory),
                    "PYTHONPATH": str(PROJECT),
                },
                stdout=log,
                stderr=log,
            )
        running = Service(directory, process)
        try:
            deadline = time.monotonic() + 30
            while not os.path.exists(running.socket_path):
                assert process.poll() is None, running.log
                assert time.monotonic() < deadline
                time.sleep(0.02)
            # The first build opens the store, which stock Nix would have made.
            assert running.ask(running.document("true")).kind == _EXITED
            group = grp.getgrnam(GROUP).gr_gid
            os.chown(running.real_store, 0, group)
            os.chmod(running.real_store, 0o1775)
            yield running
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, running.log
            assert "internal" not in running.log
        finally:
            process.kill()
            process.wait()


@pytest.mark.root
@pytest.mark.nix
class TestCaller:
    """What Nix gets."""

    def test_a_build_runs_in_the_sandbox_and_its_outputs_are_restored(
        self, service: Service
    ) -> None:
        script = (
            "echo said; pwd; ls -A; mkdir $out; echo x > $out/f; echo d > $dev; ln -s f $out/l; "
            "ls /proc/self/fd | wc -l; [ ! -e /etc/shadow ] && id -u"
        )
        done = service.build(script, outputs={"out": _OUT, "dev": _DEV})
        try:
            assert done.returncode == 0, done
            mark, said, where, files, *_, uid = done.stdout.splitlines()
            assert (mark, said, where) == (b"\2", b"said", b"/build")
            assert (files, uid) == (b".attrs.json", b"1000")
            out = service.real_store / Path(_OUT).name
            assert (out / "f").read_text() == "x\n"
            assert os.readlink(out / "l") == "f"
            # The client has restored it: it is the build user's, as Nix wants it to be.
            assert out.stat().st_uid == pwd.getpwnam(f"{GROUP}1").pw_uid
            assert (service.real_store / Path(_DEV).name).read_text() == "d\n"
        finally:
            service.remove(_OUT, _DEV)

    def test_the_end_of_the_builder_is_the_end_of_the_client(self, service: Service) -> None:
        done = service.build("echo oh no; exit 37")
        assert (done.returncode, done.stdout) == (37, b"\2\noh no\n")
        done = service.build("true")
        assert done.returncode == 0
        assert not os.path.exists(service.real_store / Path(_OUT).name)

    def test_limits_of_the_service_hold(self, service: Service) -> None:
        done = service.build("while :; do echo xxxxxxxxxxxxxxxxxxxxxxx; done")
        assert done.returncode == 1
        assert b"more than 9999 bytes of log output" in done.stdout
        done = service.build("read x < /dev/zero & wait")
        assert b"timed out after 5 seconds" in done.stdout

    def test_what_can_not_begin_is_told_as_nix_reads_it(self, service: Service) -> None:
        done = service.build("true", system="mips-linux")
        assert done.returncode == 1
        mark, _, error = done.stdout.partition(b"\n")
        assert mark == b"\1"
        client = io.BytesIO(error)
        assert client.read(16) == text("Error")
        assert b"'mips-linux' can't be built here" in error

    def test_a_service_that_is_not_there_is_told_too(self, tmp_path: Path) -> None:
        nowhere = Service(tmp_path, subprocess.Popen(["true"]))
        nowhere.process.wait()
        done = nowhere.build("true")
        assert done.returncode == 1
        assert done.stdout.startswith(b"\1\n" + text("Error"))


@pytest.mark.root
@pytest.mark.nix
class TestHostileCaller:
    """A member of the group that is up to no good."""

    def test_row_152_only_build_users_are_let_in(self, service: Service) -> None:
        os.chmod(service.socket_path, 0o666)  # the kernel's word is asked, not only the mode
        group = grp.getgrnam(GROUP).gr_gid
        try:
            for uid, gid in ((0, 0), (0, group), (12345, 12345)):
                with service.caller(uid, gid) as client:
                    assert client.number() == _REFUSED
                    assert b"is no build user" in client.data()
                    assert client.is_closed()
        finally:
            os.chmod(service.socket_path, 0o660)
        status = os.stat(service.socket_path)
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, group, 0o660)

    @pytest.mark.parametrize(
        "change",
        [
            {"inputPaths": ["/nix/store/" + "3" * 32 + "-absent"]},
            {"inputPaths": ["/etc"]},
            {"inputPaths": ["/nix/store/../../etc"]},
            {"inputPaths": [7]},
            {"outputs": {}},
            {"outputs": {"out": _OUT, "dev": _OUT}},
            {"outputs": {"out": "/etc/cron.d/x"}},
            {"outputs": {"../x": _OUT}},
            {"builder": "builtin:fetchurl"},
            {"builder": 7},
            {"env": {"a=b": "c"}},
            {"env": {"a": "b\0c"}},
            {"env": {"a": "\ud800"}},
            {"env": ["a"]},
            {"args": ["a\0"]},
            {"version": 2},
            {"version": True},
            {"storeDir": "/etc"},
            {"tmpDirInSandbox": "/"},
            {"system": "mips-linux"},
        ],
        ids=str,
    )
    def test_row_142_what_no_caller_may_name_is_refused(
        self, service: Service, change: dict[str, Any]
    ) -> None:
        answer = service.ask(service.document("echo > $out", **change))
        assert (answer.kind, answer.started) == (_REFUSED, False)
        service.require_nothing_left()

    def test_row_145_no_path_of_the_callers_is_written(
        self, service: Service, tmp_path: Path
    ) -> None:
        canary = tmp_path / "canary"
        canary.mkdir()
        change = {name: str(canary) for name in ("realStoreDir", "tmpDir", "topTmpDir")}
        answer = service.ask(service.document("echo x > $out; cat .f", **change), {b".f": b"file"})
        assert (answer.kind, answer.value, answer.log) == (_EXITED, 0, b"file")
        assert answer.outputs["out"].startswith(text("nix-archive-1"))
        assert list(canary.iterdir()) == []
        service.require_nothing_left()

    @pytest.mark.parametrize(
        "name", [b"../x", b"..", b".", b"", b"/etc/x", b"a/b", b"a\0", b"x" * 300]
    )
    def test_row_080_files_have_names_in_the_build_directory(
        self, service: Service, name: bytes
    ) -> None:
        answer = service.ask(service.document("true"), {name: b"content"})
        assert answer.kind == _REFUSED

    def test_row_145_bad_requests_end_their_connection_only(self, service: Service) -> None:
        document = json.dumps(service.document("true")).encode()
        for said in (
            number(7),
            number(MAGIC) + number(2),
            number(MAGIC) + number(1) + number(1 << 62),
            number(MAGIC) + number(1) + text(document) + number(1 << 40),
            number(MAGIC) + number(1) + text(b"[" * 100000) + number(0),
            number(MAGIC) + number(1) + text(b"[]") + number(0),
            number(MAGIC) + number(1) + text(b"{") + number(0),
        ):
            with service.caller() as client:
                client.send(said)
                assert read_answer(client).kind == _REFUSED
                assert client.is_closed()
        assert service.ask(service.document("true")).value == 0

    def test_row_145_a_caller_writes_no_lines_of_its_own_into_the_log(
        self, service: Service
    ) -> None:
        platform = "x\nexternal build for user 0 (pid 1): forged\x1b[2K"
        answer = service.ask(service.document("true", system=platform))
        assert answer.kind == _REFUSED
        deadline = time.monotonic() + 10
        while "forged" not in service.log:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (line,) = [line for line in service.log.splitlines() if "forged" in line]
        assert line.startswith(f"external build for user {pwd.getpwnam(f'{GROUP}2').pw_uid} (pid ")
        assert "\x1b" not in line

    def test_row_147_a_user_has_few_connections(self, service: Service) -> None:
        with contextlib.ExitStack() as stack:
            user = pwd.getpwnam(f"{GROUP}4").pw_uid  # nobody else's connections count
            for _ in range(MOST_OF_A_USER):
                stack.enter_context(service.caller(uid=user))
            last = stack.enter_context(service.caller(uid=user))
            assert last.number() == _REFUSED
            assert b"too many builds" in last.data()
            other = pwd.getpwnam(f"{GROUP}3").pw_uid
            with service.caller(uid=other) as client:
                client.send(write_request(json.dumps(service.document("true")).encode(), {}))
                assert read_answer(client).value == 0

    def test_row_147_a_user_s_second_build_waits_for_its_first(self, service: Service) -> None:
        user, other = (pwd.getpwnam(f"{GROUP}{index}").pw_uid for index in (5, 6))
        quick = write_request(json.dumps(service.document("true")).encode(), {})
        endless = json.dumps(service.document("read x < /dev/zero & wait")).encode()
        with service.caller(uid=user) as first, service.caller(uid=user) as second:
            first.send(write_request(endless, {}))
            assert first.number() == _STARTED
            second.send(quick)
            with service.caller(uid=other) as third:
                third.send(quick)
                assert read_answer(third).value == 0
            second.connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                second.number()
            second.connection.settimeout(30)
            first.connection.close()
            assert read_answer(second).value == 0

    @pytest.mark.parametrize(
        ("script", "reason"),
        [
            ("mkdir $out; mknod $out/p p", "unsupported type"),
            ("mknod $out p", "unsupported type"),
            ("echo > $out; chmod 666 $out", "suspicious ownership or permission"),
        ],
    )
    def test_outputs_that_are_no_store_objects_are_not_sent(
        self, service: Service, script: str, reason: str
    ) -> None:
        answer = service.ask(service.document(script))
        assert answer.kind == _STOPPED
        assert reason in str(answer.value)
        assert answer.outputs == {}
        service.require_nothing_left()

    def test_links_are_sent_as_links(self, service: Service) -> None:
        answer = service.ask(service.document("ln -s /etc/shadow $out"))
        assert text("symlink") + text("target") + text("/etc/shadow") in answer.outputs["out"]
        assert b"root:" not in answer.outputs["out"]

    def test_who_goes_away_ends_the_build_and_leaves_nothing(self, service: Service) -> None:
        with service.caller() as client:
            script = "echo begun; read x < /dev/zero & wait"
            client.send(write_request(json.dumps(service.document(script)).encode(), {}))
            while client.number() != _LOG:
                pass
            assert client.data() == b"begun\n"
        service.require_nothing_left()


# The messages by themselves.


def _document(**change: Any) -> bytes:
    whole = Service(Path("/x"), None).document("true", **change)  # type: ignore[arg-type]
    return json.dumps(whole).encode()


def test_a_request_is_read_as_it_was_written() -> None:
    written = write_request(_document(env={"NIX_OUTPUT_CHECKED": "1", "a": "ü"}), {b"f": b"x"})
    request = read_request(WireReader(io.BytesIO(written)), STORE)
    assert request.has_network
    assert request.environment[b"a"] == "ü".encode()
    assert request.files == ((b"f", b"x"),)
    assert (request.builder, request.arguments) == (b"/bin/sh", (b"-c", b"true"))
    assert STORE.render(request.outputs["out"]) == _OUT


def test_row_145_a_request_may_end_at_every_byte() -> None:
    written = write_request(_document(), {b"f": b"x"})
    for size in range(len(written)):
        with pytest.raises(EndOfStreamError):
            read_request(WireReader(io.BytesIO(written[:size])), STORE)


def test_row_145_what_a_request_becomes_is_paid_for_before() -> None:
    paid: list[int] = []

    def pay(size: int) -> None:
        paid.append(size)
        if sum(paid) > 1 << 20:
            raise FormatError("too much")

    # Twenty times its size in memory, as objects.
    written = write_request(b'{"a":[' + b"[]," * 20000 + b"[]]}", {})
    with pytest.raises(FormatError, match="too much"):
        read_request(WireReader(io.BytesIO(written), pay), STORE)
    assert len(written) < 1 << 17


def test_the_client_takes_nothing_that_nobody_wants(tmp_path: Path) -> None:
    job = Job(document=b"", build_directory="/", real_store=str(tmp_path), outputs={"out": "x"})
    for said in (output_frame("dev"), output_frame("../x"), number(99), b""):
        with pytest.raises(FormatError):
            follow(job, WireReader(io.BytesIO(said)), lambda _data: None)
    assert list(tmp_path.iterdir()) == []
    assert follow(job, WireReader(io.BytesIO(ended_frame(5, None))), lambda _data: None) == 5
    for number_ in (signal.SIGTERM, signal.SIGKILL):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                words = WireReader(io.BytesIO(ended_frame(None, number_)))
                follow(job, words, lambda _data: None)
            os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == number_


def test_documents_that_nix_does_not_write_are_errors(tmp_path: Path) -> None:
    for content in (b"", b"[]", b"{}", b'{"outputs": []}', struct.pack("<Q", 7)):
        (tmp_path / "build.json").write_bytes(content)
        with pytest.raises(FormatError):
            read_job(str(tmp_path / "build.json"))
