"""Runs as a builder with the socket of ``recursive-nix``, and says what it was answered.

``python -m tests.hostile.restricted_inside MODE [PATH…]``; a line for each question.
"""

from __future__ import annotations

import ctypes
import io
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial

from executor.derivation import Derivation, FixedOutput, InputAddressed, unparse_derivation
from executor.derivation_hash import ModuloHasher, fill_outputs
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.nar import Chunk, NarWriter, Regular
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StoreDir, StorePath
from executor.protocols.client_channel import ClientChannel
from executor.protocols.client_settings import ClientOptions
from executor.protocols.errors import ClientError
from executor.protocols.worker_client import WorkerClient
from executor.protocols.worker_messages import DerivedPath
from executor.protocols.worker_protocol import BuildMode
from executor.store.path_info import PathInfo

STORE_DIR = StoreDir("/nix/store")
OPTIONS = ClientOptions(
    keep_failed=True,
    keep_going=True,
    fallback=True,
    verbosity=7,
    max_jobs=1000,
    max_silent_time=1,
    cores=7,
    substitute=True,
    overrides=(("sandbox-paths", "/etc"), ("build-hook", "/build/hook"), ("timeout", "1")),
)


def connected() -> WorkerClient:
    """A connection as the variable says."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["NIX_REMOTE"].removeprefix("unix://"))
    return WorkerClient(ClientChannel.of_socket(connection), STORE_DIR)


def say(name: str, ask: Callable[[], object]) -> None:
    """Ask, and print the answer or the first line of the error."""
    try:
        print(name, ask())
    except (ClientError, OSError) as error:
        print(name, "refused:", str(error).splitlines()[0])


def spy(secret: StorePath, known: StorePath) -> None:
    """Ask about a path that the builder doesn't see, in every way, and for what isn't its."""
    client = connected()
    with client:
        say("trust", lambda: client.trust.name)
        say("valid", lambda: client.is_valid(secret))
        say("info", lambda: client.query_path_info(secret))
        say("valid-set", lambda: sorted(map(str, client.query_valid([secret], substitute=True))))
        say("all", lambda: secret in client.query_all_valid())
        say("referrers", lambda: sorted(client.query_referrers(secret)))
        say("derivers", lambda: sorted(client.query_derivers(secret)))
        say("output-map", lambda: client.query_output_map(secret))
        say("nar", lambda: client.nar_from_path(secret, lambda _data: None))
        say("ensure", lambda: client.ensure_path(secret))
        wish = DerivedPath(path=secret, is_built=False)
        say("build", lambda: client.build_paths([wish], BuildMode.NORMAL))
        say("missing", lambda: secret in client.query_missing([wish]).unknown)
        say("roots", client.find_roots)
        say("realisation", lambda: client.query_realisation(KEY))
        say("refer", lambda: client.add_to_store("x", "text:sha256", [secret], io.BytesIO(b"x")))
        say("dead", lambda: client.collect_garbage(1))
        say("delete", lambda: client.collect_garbage(3, [known]))
        say("known", lambda: client.is_valid(known))
        info = client.query_path_info(known)
        say("censored", lambda: info and (info.deriver, info.registration_time, info.signatures))
        say("options", lambda: client.set_options(OPTIONS))
    refused(known)


KEY = DrvOutput.of(hash_bytes(HashAlgorithm.SHA256, b""), "out")


def refused(known: StorePath) -> None:
    """What is no operation here ends the connection: each has one of its own."""
    derivation = Derivation(
        name="x",
        outputs={"out": InputAddressed(known)},
        input_drvs={},
        input_srcs=frozenset(),
        platform="x86_64-linux",
        builder=b"/bin/sh",
        args=(),
        env={},
    )
    drv_path = StorePath("0" * 32, "x.drv")
    questions: dict[str, Callable[[WorkerClient], object]] = {
        "hash-part": lambda client: client.path_from_hash_part(known.digest),
        "sign": lambda client: client.add_signatures(known, ["key:c2lnbmF0dXJl"]),
        "register": lambda client: client.register_realisation(Realisation(KEY, known)),
        "log": lambda client: client.add_build_log(drv_path, io.BytesIO(b"x")),
        "root": lambda client: client.add_permanent_root(known, "/build/root"),
        "sent": lambda client: client.build_derivation(drv_path, derivation, BuildMode.NORMAL),
    }
    for name, ask in questions.items():
        with connected() as client:
            say(name, partial(ask, client))


def squat() -> None:
    """Have something else at the place where an added path would become visible."""
    makers: tuple[Callable[[str], None], ...] = (os.mkdir, partial(os.symlink, "/etc"))
    for number, make in enumerate(makers):
        contents = f"contents {number}".encode()
        with connected() as client:
            # Its path is known before: the same contents were added to another store, say.
            first = client.add_to_store(f"first{number}", "text:sha256", (), io.BytesIO(contents))
            print("first", os.path.exists(STORE_DIR.render(first.path)))
        for path in sys.argv[2 + number : 3 + number]:
            make(path)
            with connected() as client:
                name = path[44:]
                ask = io.BytesIO(contents)
                say("squatted", lambda: client.add_to_store(name, "text:sha256", (), ask))  # noqa: B023
    for name in sorted(os.listdir("/nix/store")):
        if "-first" in name:
            say("move", lambda: os.rename(f"/nix/store/{name}", "/nix/store/moved"))  # noqa: B023
            say("remove", lambda: os.unlink(f"/nix/store/{name}"))  # noqa: B023
            say("write", lambda: open(f"/nix/store/{name}", "w"))  # noqa: B023, SIM115


def crowd() -> None:
    """Hold more connections than anybody needs, and leave one in the middle of a message."""
    held = []
    for _ in range(200):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(5)
        try:
            connection.connect("/build/.nix-socket")
            connection.sendall(b"\xff" * 4)
        except OSError:
            break
        held.append(connection)
    print("held", len(held) > 0)
    time.sleep(0.2)


def copier(source: StorePath) -> Derivation:
    """A derivation that copies a path, at an output whose path is known before."""
    derivation = Derivation(
        name="copy",
        outputs={"out": FixedOutput(IngestionMethod.FLAT, hash_bytes(HashAlgorithm.SHA256, b""))},
        input_drvs={},
        input_srcs=frozenset([source]),
        platform="x86_64-linux",
        builder=b"/bin/sh",
        args=(b"-c", f"echo copied $(cat {STORE_DIR.render(source)}); echo > $out".encode()),
        env={},
    )
    return fill_outputs(derivation, ModuloHasher(lambda _path: derivation, STORE_DIR))


def smuggle(secret: StorePath) -> None:
    """Name a path in a derivation, and nowhere else; and one that is valid as if we had it."""
    written = unparse_derivation(copier(secret), STORE_DIR)
    with connected() as client:
        added = client.add_to_store("copy.drv", "text:sha256", (), io.BytesIO(written))
        client.listen = lambda told: print("told", told)
        wish = DerivedPath(path=added.path, is_built=True)
        say("planned", lambda: client.query_missing([wish]))
        say("copied", lambda: client.build_paths([wish], BuildMode.NORMAL))


def claim(secret: StorePath, address: str) -> None:
    """Add a valid path by what is known of it, with other contents."""
    archive = io.BytesIO()
    writer = NarWriter(archive.write)
    for event in (Regular(executable=False, size=5), Chunk(b"wrong")):
        writer.take(event)
    writer.finish()
    info = PathInfo(
        path=secret,
        nar_hash=hash_bytes(HashAlgorithm.SHA256, archive.getvalue()),
        nar_size=len(archive.getvalue()),
        references=frozenset(),
        content_address=address,
    )
    for name in ("claimed", "claimed-many"):
        archive.seek(0)
        with connected() as client:
            add = client.add_nar if name == "claimed" else partial(_add_many, client)
            say(name, lambda: add(info, archive))  # noqa: B023
            say(f"{name}-valid", lambda: client.is_valid(secret))


def _add_many(client: WorkerClient, info: PathInfo, contents: io.BytesIO) -> None:
    client.add_nars([(info, contents)])


def leave() -> None:
    """As the first process of the sandbox: add something when its mounts are ours to change."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    clone_newuser, clone_newns, ms_remount, ms_bind = 0x10000000, 0x20000, 32, 4096
    if libc.unshare(clone_newuser | clone_newns):
        print("unshared", os.strerror(ctypes.get_errno()))
        return
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {user} 1"),
        ("gid_map", f"0 {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    with connected() as client:
        say("added", lambda: client.add_to_store("x", "text:sha256", (), io.BytesIO(b"x")).path)
        for name in os.listdir("/nix/store"):
            if name.endswith("-x"):
                path = f"/nix/store/{name}".encode()
                failed = libc.mount(b"none", path, None, ms_remount | ms_bind, None)
                print("remounted", os.strerror(ctypes.get_errno()) if failed else True)


def repeat() -> None:
    """Add the contents of the build's own output, which is locked for as long as it is built."""
    with connected() as client:
        say("own", lambda: client.add_to_store("outer", "fixed:sha256", (), io.BytesIO(b"fixed\n")))


if __name__ == "__main__":
    mode, *words = sys.argv[1:]
    if mode == "spy":
        spy(STORE_DIR.parse(words[0]), STORE_DIR.parse(words[1]))
    elif mode == "squat":
        squat()
    elif mode == "smuggle":
        smuggle(STORE_DIR.parse(words[0]))
    elif mode == "claim":
        claim(STORE_DIR.parse(words[0]), words[1])
    elif mode == "leave":
        leave()
    elif mode == "repeat":
        repeat()
    else:
        crowd()
