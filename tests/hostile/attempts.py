"""Tries an attack on a builder of derivations, and sees what came of it.

The same derivation, in the same kind of store, is built by this executor or by stock Nix
(:class:`Side`), and what the attack got is judged by the same code. So the two columns of
``docs/beside-nix.md`` compare the two, and not two ways to ask.
"""

from __future__ import annotations

import bz2
import ctypes
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from executor.derivation import DerivationOutput, FloatingOutput
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm
from tests.build.conftest import Drv, Workshop, fixed, processes_with, wait_until
from tests.hostile.host import tree

# Not below /tmp: neither builder wants a directory of everybody's above its store.
PLACE = "/run"
_OUTPUTS: Mapping[str, DerivationOutput] = {
    "fixed": fixed(b"made\n"),
    "floating": FloatingOutput(IngestionMethod.NAR, HashAlgorithm.SHA256),
}


@dataclass(slots=True)
class Seen:
    """What an attempt looked like from outside."""

    root: Path
    ids: tuple[range, ...]
    seconds: float
    status: int | None
    message: str
    lines: list[str]
    later: list[str]
    output: Path
    content_changed: bool
    victims_changed: bool
    received: int
    visitors: int
    found: list[str]

    @property
    def answers(self) -> dict[str, str]:
        """``what errno`` lines by what."""
        return dict(line.split(" ", 1) for line in self.lines if " " in line)

    @property
    def success(self) -> bool:
        return self.status == 0


@dataclass(frozen=True, slots=True)
class Scene:
    """A builder that waits, for attacks from outside while it runs."""

    root: Path
    pid: int
    process: subprocess.Popen[bytes]
    victims: Path
    received: list[int]

    @property
    def uid(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("Uid:\t")[2].split()[0])


@dataclass(frozen=True, slots=True)
class Attack:
    """A builder's script, and who says what it got: nothing is what is hoped for.

    ``$given`` is an input with a file, ``$victims`` a directory of the host that nobody may change,
    ``$port`` a service on the host's loopback, ``$process`` a process of the host, ``$canary`` a
    secret in the environment, the arguments and the keyring of whoever starts the build,
    ``$meeting`` an abstract socket of the host and ``/meeting/socket`` one with a path. Where the
    script says ``PAUSE``, ``meanwhile`` looks on.
    """

    name: str
    rows: tuple[int, ...]
    script: str
    judge: Callable[[Seen], list[str]]
    kind: str = "ordinary"
    then: str = ""
    meanwhile: Callable[[Scene], list[str]] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    meets: bool = False
    open_input: bool = False
    keeps_failed: bool = False
    patience: int = 30
    shows_programs: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


class Side:
    """This executor; a subclass is Nix."""

    ids: tuple[range, ...] = (range(872_415_232, 1 << 32),)
    config: Mapping[str, str] = {"build-users-group": "", "fsync-metadata": "false"}
    only_here: Mapping[str, str] = {"fod-network": "isolated"}
    for_ranges: Mapping[str, str] = {}
    prefix: tuple[str, ...] = ()
    # Where whoever builds finds this machine's files.
    host = Path("/")

    def command(self, root: Path, drv: Drv, attack: Attack) -> list[str]:
        keep = ["--keep-failed"] if attack.keeps_failed else []
        return [sys.executable, "-m", "executor", "build", "--store", str(root), drv.text, *keep]

    def configuration(self, paths: Mapping[str, str], attack: Attack) -> str:
        shown = " ".join(f"{target}={source}" for target, source in paths.items())
        settings = {
            **self.config,
            **self.only_here,
            "sandbox-paths": shown,
            "substituters": "",
            "experimental-features": "ca-derivations auto-allocate-uids cgroups nix-command",
            **attack.options,
        }
        if attack.kind == "uid-range":
            settings |= {"auto-allocate-uids": "true", **self.for_ranges}
        return "".join(f"{name} = {value}\n" for name, value in settings.items())


class Attempt:
    """One attack on one side, in a directory that is removed afterwards."""

    def __init__(self, side: Side, attack: Attack, directory: Path, tools: Mapping[str, Path]):
        self._side, self._attack, self._directory = side, attack, directory
        self._workshop = Workshop(directory)
        self._victims = directory / "victims"
        self._pause = 10**8 + int.from_bytes(os.urandom(4), "big")
        self._canary = f"canary{os.urandom(8).hex()}"
        self._paths = {f"/bin/{name}": str(path) for name, path in tools.items()}
        self._paths["/bin/sh"] = self._paths["/bin/busybox"]
        if attack.shows_programs:
            directories = ("usr", "lib", "lib64")
            self._paths |= {f"/{name}": str(side.host / name) for name in directories}
        self._inputs: list[Drv] = []
        self._received: list[int] = []
        self._visitors: list[object] = []

    def run(self) -> Seen:
        """Build, attack, and look."""
        with ExitStack() as stack:
            environment = self._prepare(stack)
            before = tree(self._victims)
            drv = self._derivation("attack", self._attack.script, environment)
            start = time.monotonic()
            process, message, found = self._build(drv, self._attack.meanwhile)
            seconds = time.monotonic() - start
            later: list[str] = []
            if self._attack.then:
                second = self._derivation("later", self._attack.then, environment)
                self._build(second, None)
                later = self._log(second)
            output = self._workshop.real(drv.out) if drv.outputs else self._directory / "none"
            return Seen(
                root=self._workshop.root,
                ids=self._side.ids,
                seconds=seconds,
                status=process,
                message=message,
                lines=self._log(drv),
                later=later,
                output=output,
                content_changed=self._tamper(output),
                victims_changed=tree(self._victims) != before,
                received=len(self._received),
                visitors=len(self._visitors),
                found=found,
            )

    def _prepare(self, stack: ExitStack) -> dict[str, str]:
        """The host that is attacked, and what the script knows of it."""
        self._victims.mkdir()
        (self._victims / "shared").mkdir(mode=0o777)
        (self._victims / "shadow").write_text("precious\n")
        (self._victims / "shadow").chmod(0o600)
        victim = stack.enter_context(subprocess.Popen(["sleep", "300"]))
        stack.callback(victim.kill)
        name = f"@{self._canary}"
        if self._attack.meets:
            stack.enter_context(self._accomplices(name))
        service = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=self._serve, args=(service,), daemon=True).start()
        if "/set-id/" in self._attack.script:
            self._show_set_id_program()
        return {
            **self._attack.environment,
            "PATH": "/bin",
            "victims": str(self._victims),
            "canary": self._canary,
            "port": str(service.getsockname()[1]),
            "process": str(victim.pid),
            "meeting": name,
            **self._given(),
        }

    def _show_set_id_program(self) -> None:
        program = self._directory / "set-id/busybox"
        program.parent.mkdir()
        program.write_bytes(Path("/bin/busybox").read_bytes())
        program.chmod(0o6755)
        self._paths["/set-id"] = str(program.parent)

    def _serve(self, service: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _address = service.accept()
                connection.close()
                self._visitors.append(connection)

    def _given(self) -> dict[str, str]:
        """An input, which is built by who is attacked, for the attacks that want one."""
        if "$given" not in self._attack.script:
            return {}
        script = "busybox mkdir -p $out/sub; echo precious > $out/file"
        given = self._workshop.make("given", script, env={"PATH": "/bin"})
        self._inputs = [given]
        status, message, _found = self._build(given, None)
        assert status == 0, message
        if self._attack.open_input:
            real = self._workshop.real(given.out)
            for path in (real, real / "sub", real / "file"):
                path.chmod(0o777)
        return {"given": self._workshop.render(given.out)}

    def _derivation(self, name: str, script: str, environment: Mapping[str, str]) -> Drv:
        kind = self._attack.kind
        end = "\n[ -e $out ] || [ -L $out ] || echo made > $out"
        text = script.replace("PAUSE", f"busybox sleep {self._pause} || true") + end
        if kind == "uid-range":
            environment = {**environment, "requiredSystemFeatures": "uid-range"}
        outputs = {"out": _OUTPUTS[kind]} if kind in _OUTPUTS else ("out",)
        return self._workshop.make(
            name, text, outputs=outputs, inputs=self._inputs, env=environment
        )

    def _build(
        self, drv: Drv, meanwhile: Callable[[Scene], list[str]] | None
    ) -> tuple[int | None, str, list[str]]:
        """Status (None: it didn't end in time), what was said, what was found meanwhile."""
        decoys = [os.open("/etc/shadow", os.O_RDONLY), os.open("/", os.O_RDONLY)]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [*self._side.prefix, *self._side.command(self._workshop.root, drv, self._attack)],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=decoys,
                extra_groups=[4, 27],
                preexec_fn=self._join_keyring,
                start_new_session=True,
            )
            found = self._look_on(process, meanwhile)
            for decoy in decoys:
                os.close(decoy)
            try:
                status: int | None = process.wait(self._attack.patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status = None
            said.seek(0)
            return status, said.read().decode(errors="replace"), found

    def _look_on(
        self, process: subprocess.Popen[bytes], meanwhile: Callable[[Scene], list[str]] | None
    ) -> list[str]:
        if meanwhile is None:
            return []
        marker = f"sleep\0{self._pause}\0"
        wait_until(lambda: bool(processes_with(marker)) or process.poll() is not None, "a builder")
        sleeping = processes_with(marker)
        if not sleeping:
            return []
        args = (self._workshop.root, sleeping[0], process, self._victims, self._received)
        found = meanwhile(Scene(*args))
        for pid in processes_with(marker):
            with suppress(ProcessLookupError):
                os.kill(pid, 15)
        return found

    def _environment(self) -> dict[str, str]:
        (self._directory / "conf").mkdir(exist_ok=True)
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._directory),
            "NIX_CONF_DIR": str(self._directory / "conf"),
            "NIX_CONFIG": self._side.configuration(self._paths, self._attack),
            "CANARY": self._canary,
        }

    def _join_keyring(self) -> None:
        """A session keyring of its own, with a key in it."""
        libc = ctypes.CDLL(None)
        libc.syscall(250, 1, None)
        libc.syscall(248, b"user", self._canary.encode(), b"secret", 6, -3)

    def _log(self, drv: Drv) -> list[str]:
        name = drv.path.base_name
        directory = Path(self._workshop.location.log_dir, "drvs", name[:2])
        for path in directory.glob(f"{name[2:]}*"):
            content = path.read_bytes()
            text = bz2.decompress(content) if path.suffix == ".bz2" else content
            return text.decode(errors="surrogateescape").splitlines()
        return []

    @contextmanager
    def _accomplices(self, name: str) -> Iterator[None]:
        """They listen, connect to whoever listens, and keep the descriptors they get."""
        directory = self._directory / "meeting"
        directory.mkdir()
        self._paths["/meeting"] = str(directory)
        own = "\0" + name[1:]
        with socket.socket(socket.AF_UNIX) as by_path, socket.socket(socket.AF_UNIX) as abstract:
            by_path.bind(os.fspath(directory / "socket"))
            (directory / "socket").chmod(0o777)
            abstract.bind(own + "-outside")
            stop = threading.Event()
            threads = [
                threading.Thread(target=self._accept, args=(listener, stop), daemon=True)
                for listener in (by_path, abstract)
            ]
            threads.append(threading.Thread(target=self._come_in, args=(own, stop), daemon=True))
            for listener in (by_path, abstract):
                listener.listen()
                listener.settimeout(0.2)
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                stop.set()
                for thread in threads:
                    thread.join(10)
                for descriptor in self._received:
                    os.close(descriptor)

    def _accept(self, listener: socket.socket, stop: threading.Event) -> None:
        while not stop.is_set():
            with suppress(OSError):
                self._take(listener.accept()[0])

    def _come_in(self, name: str, stop: threading.Event) -> None:
        while not stop.is_set():
            connection = socket.socket(socket.AF_UNIX)
            if connection.connect_ex(name) == 0:
                self._take(connection)
                return
            connection.close()
            time.sleep(0.05)

    def _take(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(5)
            self._received.extend(socket.recv_fds(connection, 1, 1)[1])
            connection.sendall(b"x")

    def _tamper(self, output: Path) -> bool:
        """Whether what is registered changes, by descriptors that were given away or by itself."""
        if not output.is_file() or output.is_symlink():
            return False
        before = output.read_bytes()
        for descriptor in self._received:
            os.pwrite(descriptor, b"evil\n", 0)
        time.sleep(0.2)
        return output.read_bytes() != before


def verdict(side: Side, attack: Attack, tools: Mapping[str, Path]) -> str:
    """Try an attack: ``held``, or what came through."""
    with tempfile.TemporaryDirectory(prefix="attempt-", dir=PLACE) as directory:
        os.chmod(directory, 0o755)
        got = attack.judge(Attempt(side, attack, Path(directory), tools).run())
    return f"let through: {'; '.join(got)}" if got else "held"
