"""Record what stock Nix's client and daemon say to each other, for ``tests/protocols/golden``.

    python -m tests.protocols.record_golden 37 38

Runs nix-daemon on a new store, and commands of the same Nix as its client, with a proxy between
them that keeps the bytes of both directions; as root. Each connection is one conversation. Nothing
of the machine is in it: contents, names and places are always the same.

There is one file for each version of the protocol: the proxy tells either side that the other one
knows nothing newer, and both speak as they do with somebody who doesn't.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
WORK = Path("/tmp/executor-golden")
STORE = WORK / "root"
SECRET = "golden-1:" + base64.b64encode(bytes(range(64))).decode()
FEATURES = "nix-command ca-derivations"
CONFIG = (
    f"experimental-features = {FEATURES}\nsubstituters =\nsandbox = true\n"
    "sandbox-paths = /bin/sh=/usr/bin/busybox\n"
    "build-users-group =\nrequire-sigs = false\nconnect-timeout = 7\n"
)
TEXT = 'derivation {{ name = "{name}"; system = "x86_64-linux"; builder = "/bin/sh"; '
TRIVIAL = TEXT.format(name="golden") + 'args = ["-c" "echo said; echo golden > $out"]; }'
FAILING = TEXT.format(name="failing") + 'args = ["-c" "echo why; exit 3"]; }'
FLOATING = (
    TEXT.format(name="floating")
    + 'args = ["-c" "echo floating > $out"]; __contentAddressed = true; '
    + 'outputHashMode = "recursive"; outputHashAlgo = "sha256"; }'
)


@dataclass
class Tap:
    """A socket that passes everything on, in both directions, and keeps it."""

    path: str
    behind: str
    minor: int
    heard: list[tuple[bytearray, bytearray]] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Accept connections meanwhile."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(16)
        accepting = threading.Thread(target=self._accept, args=(listener,), daemon=True)
        accepting.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            accepting.join(10)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _address = listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.behind)
            kept = (bytearray(), bytearray())
            self.heard.append(kept)
            for source, sink, bucket in ((client, server, kept[0]), (server, client, kept[1])):
                thread = threading.Thread(
                    target=self._pass, args=(source, sink, bucket), daemon=True
                )
                thread.start()
                self._threads.append(thread)

    def take(self) -> list[tuple[bytearray, bytearray]]:
        """What has been said since the last time; every connection has ended."""
        for thread in self._threads:
            thread.join(30)
        taken, self.heard, self._threads = self.heard, [], []
        return taken

    def _pass(self, source: socket.socket, sink: socket.socket, bucket: bytearray) -> None:
        """Either side's greeting is a number, and its version."""
        greeting = b""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not bucket:
                    greeting += data
                    if len(greeting) < 16:
                        # The server speaks when it has heard the first half.
                        sink.sendall(data) if len(greeting) <= 8 else None
                        continue
                    first = len(greeting) - len(data)
                    (version,) = struct.unpack_from("<Q", greeting, 8)
                    known = struct.pack("<Q", min(version, 1 << 8 | self.minor))
                    bucket += greeting[:8] + known + greeting[16:]
                    sink.sendall(bucket[first:])
                    continue
                bucket += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def commands() -> Iterator[tuple[str, Sequence[str]]]:
    """Names of conversations, and the commands. ``@NAME`` stands for what NAME has printed."""
    yield "flat", ("nix-store", "--add-fixed", "sha1", str(WORK / "file"))
    yield "tree", ("nix-store", "--add", str(WORK / "tree"))
    yield "references", ("nix-store", "-q", "--references", "@tree")
    yield "hash", ("nix-store", "-q", "--hash", "@tree")
    yield "referrers", ("nix-store", "-q", "--referrers-closure", "@flat")
    yield "instantiate", ("nix-instantiate", "-E", TRIVIAL)
    yield "dry", ("nix-store", "--realise", "--dry-run", "@instantiate")
    yield "realise", ("nix-store", "--realise", "@instantiate")
    yield "again", ("nix-store", "--realise", "@instantiate")
    yield "check", ("nix-store", "--realise", "--check", "@instantiate")
    yield "deriver", ("nix-store", "-q", "--deriver", "@realise")
    yield "derivers", ("nix-store", "-q", "--valid-derivers", "@realise")
    yield "outputs", ("nix-store", "-q", "--outputs", "@instantiate")
    yield "log", ("nix", "path-info", "--json", "@realise")
    yield "all", ("nix", "path-info", "--all")
    yield "build", ("nix", "build", "--impure", "--no-link", "--expr", TRIVIAL)
    yield "failing", ("nix-build", "--no-out-link", "-E", FAILING)
    yield "failing-new", ("nix", "build", "--impure", "--no-link", "--expr", FAILING)
    yield "floating", ("nix-build", "--no-out-link", "-E", FLOATING)
    yield "floating-again", ("nix-build", "--no-out-link", "-E", FLOATING)
    yield "info", ("nix", "realisation", "info", "@floating")
    yield "root", ("nix-store", "--add-root", str(WORK / "link"), "--realise", "@realise")
    yield "roots", ("nix-store", "--gc", "--print-roots")
    yield "dead", ("nix-store", "--gc", "--print-dead")
    yield "away", ("nix", "copy", "--no-check-sigs", "--to", str(WORK / "other"), "@realise")
    yield "sign", ("nix", "store", "sign", "--key-file", str(WORK / "key"), "@realise")
    yield "delete", ("nix-store", "--delete", "@flat")
    yield "alive", ("nix-store", "--delete", "@realise")
    yield "back", ("nix", "copy", "--no-check-sigs", "--from", str(WORK / "third"), "@third")
    yield "verify", ("nix-store", "--verify", "--check-contents")
    yield "optimise", ("nix-store", "--optimise")
    yield "collect", ("nix-store", "--gc")
    yield "invalid", ("nix-store", "-q", "--hash", "/nix/store/" + "0" * 32 + "-nothing")


def prepare() -> None:
    """The files that are added, and another store."""
    shutil.rmtree(WORK, ignore_errors=True)
    (STORE / "nix").mkdir(parents=True)
    (WORK / "etc").mkdir()
    (WORK / "etc" / "nix.conf").write_text(CONFIG)
    (WORK / "file").write_text("of a file\n")
    (WORK / "tree").mkdir()
    (WORK / "tree" / "program").write_text("#! /bin/sh\n")
    (WORK / "tree" / "program").chmod(0o755)
    (WORK / "tree" / "link").symlink_to("program")
    (WORK / "key").write_text(SECRET)


def run(words: Sequence[str], *, remote: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of Nix, whose store's files are where a client looks for them."""
    script = 'mount --bind "$0/nix" /nix && exec "$@"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(STORE), *words],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(WORK / "home"),
            "NIX_CONF_DIR": str(WORK / "etc"),
            **({"NIX_REMOTE": remote} if remote else {}),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def record(minor: int) -> list[dict[str, object]]:
    """All conversations of a protocol version, with the Nix that is installed."""
    prepare()
    third = run(["nix-store", "--store", str(WORK / "third"), "--add", str(WORK / "file")])
    printed = {"third": third.stdout.strip()}
    environment = {
        "PATH": os.environ["PATH"],
        "NIX_CONF_DIR": str(WORK / "etc"),
        "NIX_DAEMON_SOCKET_PATH": str(WORK / "daemon"),
        "NIX_REMOTE": str(STORE),
    }
    daemon = subprocess.Popen(["nix-daemon"], env=environment, stderr=subprocess.DEVNULL)
    tap = Tap(str(WORK / "socket"), str(WORK / "daemon"), minor)
    conversations = []
    try:
        while not (WORK / "daemon").exists():
            assert daemon.poll() is None
        with tap.listening():
            for name, words in commands():
                wanted = [printed[word[1:]] if word.startswith("@") else word for word in words]
                done = run(wanted, remote=f"unix://{tap.path}")
                printed[name] = done.stdout.strip().split("\n")[-1]
                conversations += [
                    {
                        "name": name,
                        "exit": done.returncode,
                        "client": base64.b64encode(zlib.compress(client, 9)).decode(),
                        "server": base64.b64encode(zlib.compress(server, 9)).decode(),
                    }
                    for client, server in tap.take()
                ]
    finally:
        daemon.terminate()
        daemon.wait(30)
    return conversations


def _version() -> str:
    done = subprocess.run(["nix", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def main() -> None:
    """Write the files of the versions that are named."""
    GOLDEN.mkdir(exist_ok=True)
    for minor in map(int, sys.argv[1:]):
        recorded = {"nix": _version(), "minor": minor, "conversations": record(minor)}
        file = GOLDEN / f"1.{minor}.json"
        file.write_text(json.dumps(recorded, indent=0) + "\n")
        shutil.rmtree(WORK)
        print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
