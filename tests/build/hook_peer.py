"""The other side of a build hook, for hooks that tests write: reads requests, makes outputs.

The protocol is read here once more, from its description and not with the engine's code.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from dataclasses import dataclass

from executor.formats.hashes import Hash, HashAlgorithm
from executor.formats.realisation import DrvOutput, Realisation
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
from executor.store.path_info import PathInfo
from executor.store.settings import StoreSettings


@dataclass
class Try:
    """One request."""

    willing: int
    system: str
    drv_path: str
    features: list[str]


class EndOfRequestsError(Exception):
    """The engine has closed the pipe."""


def exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            raise EndOfRequestsError
        data += part
    return data


def integer() -> int:
    (number,) = struct.unpack("<Q", exactly(8))
    return int(number)


def string() -> str:
    size = integer()
    data = exactly(size)
    assert exactly(-size % 8) == bytes(-size % 8)
    return data.decode()


def strings() -> list[str]:
    return [string() for _ in range(integer())]


def settings() -> dict[str, str]:
    values: dict[str, str] = {}
    while integer() == 1:
        name = string()
        values[name] = string()
    return values


def request() -> Try:
    word = string()
    assert word == "try", word
    return Try(integer(), string(), string(), strings())


def say(text: str) -> None:
    """A line of the hook."""
    os.write(2, text.encode() + b"\n")


def log(text: str) -> None:
    """A line of the builder."""
    os.write(4, text.encode() + b"\n")


def accept(machine: str = "some-machine") -> tuple[list[str], list[str]]:
    """Take the build; returns the inputs and the names of the wanted outputs."""
    say("# accept")
    say(machine)
    return strings(), strings()


def deliver(values: dict[str, str], drv_path: str, content: str = "from afar\n") -> None:
    """Make all outputs of a derivation in the store, as files."""
    location = parse_store_url(values["store"], os.environ)
    with LocalStore.open(location, settings=StoreSettings(fsync_metadata=False)) as store:
        path = store.store_dir.parse(drv_path)
        for output in store.query_outputs(path).values():
            data = content.encode()
            with open(store.real_path(output), "wb") as file:
                file.write(data)
            os.chmod(file.name, 0o444)
            os.utime(file.name, (1, 1))
            nar = file_nar(data)
            digest = Hash(HashAlgorithm.SHA256, hashlib.sha256(nar).digest())
            store.register(
                [PathInfo(path=output, nar_hash=digest, nar_size=len(nar), deriver=path)]
            )


def deliver_floating(values: dict[str, str], drv_path: str) -> None:
    """Make all floating outputs of a derivation, and say what they came to be."""
    location = parse_store_url(values["store"], os.environ)
    features = StoreSettings(
        fsync_metadata=False, experimental_features=frozenset({"ca-derivations"})
    )
    with LocalStore.open(location, settings=features) as store:
        derivation = store.read_derivation(store.store_dir.parse(drv_path))
        for output, digest in store.modulo_hasher.output_hashes(derivation).items():
            path = store.add_text(f"{derivation.name}-{output}", b"from afar\n", ())
            store.realisations.register([Realisation(DrvOutput.of(digest, output), path)])


def file_nar(data: bytes) -> bytes:
    """The archive of a plain file."""
    words = (b"nix-archive-1", b"(", b"type", b"regular", b"contents", data, b")")
    return b"".join(struct.pack("<Q", len(word)) + word + bytes(-len(word) % 8) for word in words)


def note(text: str) -> None:
    """Leave a line beside the hook for the test."""
    with open(f"{os.path.dirname(os.path.abspath(sys.argv[0]))}/notes", "a") as file:
        file.write(text + "\n")
