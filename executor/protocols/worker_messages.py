"""Values of the worker protocol as bytes, for each version, in both directions. Pure.

Paths are parsed where they are read: nothing behind this module sees a path as a text that a
client has sent. Source: ``worker-protocol.cc``, ``common-protocol.cc`` and ``derivations.cc``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from executor.build.event_json import result_from_json, result_to_json
from executor.build.result import BuildResult, BuildStatus
from executor.derivation import Derivation, DerivationKind, parse_output, to_term
from executor.errors import FormatError
from executor.formats.hashes import HashAlgorithm, parse_hash
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import MAX_NAME, StoreDir, StorePath, check_name
from executor.formats.wire import Source, WireReader, WireWriter, json_cost
from executor.protocols.worker_protocol import EVENTS, BuildMode, Version
from executor.store.path_info import PathInfo

# A path of the protocol is the store directory (as long as Linux allows) and a base name.
MAX_PATH = 4096 + 256
_MAX_WORD = 1 << 12
_MAX_SIGNATURE = 1 << 12
_MAX_TARGET = 1 << 16
_MAX_TIME = (1 << 63) - 1
_MAX_STATUS = int(BuildStatus.NO_SUBSTITUTERS)
# Path infos have signatures and content addresses since then.
SIGNED_INFOS = Version(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedPath:
    """What a client wants: a store path as it is (no ``outputs``), or outputs of a derivation.

    ``outputs`` is empty for all of them. ``through`` are outputs that are derivations themselves.
    ``text`` is how the client spelled it, which is how it is answered.
    """

    path: StorePath
    is_built: bool
    outputs: frozenset[str] = frozenset()
    through: tuple[str, ...] = ()
    text: str = ""


class MessageReader(WireReader):
    """Reads what clients and servers send. ``version`` is set when it has been agreed on."""

    def __init__(
        self,
        source: Source,
        store_dir: StoreDir,
        version: Version,
        pay: Callable[[int], object] = lambda _size: None,
    ) -> None:
        super().__init__(source, pay)
        self.store_dir = store_dir
        self.version = version

    def nested(self, source: Source, version: Version) -> MessageReader:
        """Reads another stream that is part of the same message, and paid for with it."""
        return MessageReader(source, self.store_dir, version, self._pay)

    def path(self) -> StorePath:
        """A store path."""
        return self.store_dir.parse(self.text(MAX_PATH))

    def base_path(self) -> StorePath:
        """A store path without the directory."""
        return StorePath.parse(self.text(MAX_PATH))

    def optional_path(self) -> StorePath | None:
        """A store path, or an empty string for none."""
        text = self.text(MAX_PATH)
        return self.store_dir.parse(text) if text else None

    def paths(self) -> frozenset[StorePath]:
        """A set of store paths."""
        return frozenset(self.path() for _ in range(self.count()))

    def path_addresses(self) -> dict[StorePath, str | None]:
        """Store paths with their content addresses, where they have any."""
        return {self.path(): self.text(_MAX_WORD) or None for _ in range(self.count())}

    def build_mode(self) -> BuildMode:
        """What a build is for."""
        return BuildMode(self.number(max(BuildMode)))

    def derived_path(self) -> DerivedPath:
        """One thing that is wanted."""
        return parse_derived_path(self.text(_MAX_TARGET), self.store_dir, self.version)

    def derived_paths(self) -> list[DerivedPath]:
        """What is wanted."""
        return [self.derived_path() for _ in range(self.count())]

    def drv_output(self) -> DrvOutput:
        """The key of a realisation."""
        return DrvOutput.parse(self.text(_MAX_WORD))

    def realisation(self) -> Realisation:
        """A realisation as JSON."""
        return Realisation.from_json(self.data(1 << 20))

    def signatures(self) -> tuple[str, ...]:
        """A set of signatures."""
        return tuple(sorted({parse_signature(text) for text in self.texts(_MAX_SIGNATURE)}))

    def path_info(self, path: StorePath, version: Version | None = None) -> PathInfo:
        """What is known of a path, behind the path itself."""
        deriver = self.optional_path()
        nar_hash = parse_hash(self.text(_MAX_WORD), HashAlgorithm.SHA256)
        references = self.paths()
        registration_time, nar_size = self.number((1 << 63) - 1), self.number((1 << 63) - 1)
        ultimate, address = False, ""
        signatures: tuple[str, ...] = ()
        if (version or self.version).minor >= SIGNED_INFOS.minor:
            ultimate, signatures = self.boolean(), self.signatures()
            address = self.text(_MAX_WORD)
        return PathInfo(
            path=path,
            nar_hash=nar_hash,
            nar_size=nar_size,
            references=references,
            deriver=deriver,
            registration_time=registration_time,
            ultimate=ultimate,
            signatures=signatures,
            content_address=address or None,
        )

    def basic_derivation(self, drv_path: StorePath) -> Derivation:
        """A derivation whose inputs are all sources. Raises ``FormatError`` for a malformed one."""
        if not drv_path.is_derivation:
            raise FormatError(f"'{self.store_dir.render(drv_path)}' is not a derivation")
        name = drv_path.name.removesuffix(".drv")
        outputs = {}
        for _ in range(self.count()):
            output, path = self.text(MAX_NAME), self.text(MAX_PATH)
            algorithm, digest = self.text(_MAX_WORD), self.text(_MAX_WORD)
            outputs[output] = parse_output(name, self.store_dir, output, path, algorithm, digest)
        # Each is read before the next: the order of keywords here is that of the protocol.
        return Derivation(
            name=name,
            outputs=outputs,
            input_drvs={},
            input_srcs=self.paths(),
            platform=self._platform(),
            builder=self._no_nul(self.data()),
            args=tuple(self._no_nul(self.data()) for _ in range(self.count())),
            env={self._no_nul(self.data()): self._no_nul(self.data()) for _ in range(self.count())},
        )

    def _platform(self) -> str:
        try:
            return self.data().decode()
        except UnicodeDecodeError:
            raise FormatError("a derivation's system is not UTF-8") from None

    def build_result(self, drv_path: StorePath) -> BuildResult:
        """How a build of ``drv_path`` went, as a server tells it (row P28)."""
        number, message = self.number(), self.text()
        start, stop = 0, 0
        if self.version.minor >= 29:
            self.number()  # times built
            self.boolean()  # not deterministic: the status says so, too
            start, stop = self.number(_MAX_TIME), self.number(_MAX_TIME)
        user = system = None
        if self.version.minor >= 37:
            user, system = self._optional_number(), self._optional_number()
        outputs = {}
        if self.version.minor >= 28:
            for _ in range(self.count()):
                key = self.drv_output()
                outputs[key.output] = self.realisation().path
        if EVENTS in self.version.features:
            told = self.data()
            self.pay(json_cost(told))
            return result_from_json(told.decode("utf-8", "surrogateescape"))
        return BuildResult(
            drv_path=drv_path,
            status=_status(number, message),
            message=message,
            outputs=outputs,
            start_time=float(start),
            stop_time=float(stop),
            cpu_user=user,
            cpu_system=system,
        )

    def _optional_number(self) -> int | None:
        return self.number(_MAX_TIME) if self.boolean() else None

    @staticmethod
    def _no_nul(data: bytes) -> bytes:
        if b"\0" in data:
            raise FormatError("a string of the derivation has a zero byte in it")
        return data


class MessageWriter(WireWriter):
    """Writes what servers and clients send."""

    def __init__(self, store_dir: StoreDir, version: Version) -> None:
        super().__init__()
        self.store_dir = store_dir
        self.version = version

    def path(self, path: StorePath) -> None:
        """A store path."""
        self.text(self.store_dir.render(path))

    def optional_path(self, path: StorePath | None) -> None:
        """A store path, or an empty string for none."""
        self.text("" if path is None else self.store_dir.render(path))

    def derived_path(self, wish: DerivedPath) -> None:
        """What is wanted."""
        self.text(render_wish(wish, self.store_dir))

    def paths(self, paths: Collection[StorePath]) -> None:
        """A set of store paths."""
        self.number(len(paths))
        for path in sorted(paths):
            self.path(path)

    def output_map(self, outputs: Mapping[str, StorePath | None]) -> None:
        """Where outputs are, as far as that is known."""
        self.number(len(outputs))
        for name, path in sorted(outputs.items()):
            self.text(name)
            self.optional_path(path)

    def path_info(self, info: PathInfo, version: Version | None = None) -> None:
        """What is known of a path, without the path itself."""
        self.optional_path(info.deriver)
        self.text(info.nar_hash.base16)
        self.paths(info.references)
        self.number(info.registration_time)
        self.number(info.nar_size)
        if (version or self.version).minor >= SIGNED_INFOS.minor:
            self.boolean(info.ultimate)
            self.texts(sorted(info.signatures))
            self.text(info.content_address or "")

    def realisations(self, realisations: Iterable[Realisation]) -> None:
        """A set of realisations."""
        listed = sorted(realisations, key=lambda each: each.id)
        self.number(len(listed))
        for realisation in listed:
            self.data(realisation.to_json())

    def basic_derivation(self, derivation: Derivation) -> None:
        """A derivation without its input derivations."""
        term = to_term(derivation, self.store_dir)
        self.number(len(term.outputs))
        for fields in term.outputs:
            for field in fields:
                self.data(field)
        self.paths(derivation.input_srcs)
        self.data(term.platform)
        self.data(term.builder)
        self.number(len(term.args))
        for argument in term.args:
            self.data(argument)
        self.number(len(term.env))
        for name, value in term.env:
            self.data(name)
            self.data(value)

    def build_result(
        self, result: BuildResult, message: str, realisations: Mapping[str, Realisation]
    ) -> None:
        """How a build went, with what it made (row P28); ``message`` is empty for a success."""
        self.number(result.status.wire)
        self.text("" if result.success else message)
        if self.version.minor >= 29:
            self.number(_times_built(result))
            self.boolean(result.status.name == "NOT_DETERMINISTIC")
            self.number(int(result.start_time))
            self.number(int(result.stop_time))
        if self.version.minor >= 37:
            self._optional_number(result.cpu_user)
            self._optional_number(result.cpu_system)
        if self.version.minor >= 28:
            built = realisations if result.success else {}
            self.number(len(built))
            for realisation in sorted(built.values(), key=lambda each: each.id):
                self.text(str(realisation.id))
                self.data(realisation.to_json())
        if EVENTS in self.version.features:
            self.text(result_to_json(result))

    def _optional_number(self, value: int | None) -> None:
        self.boolean(value is not None)
        if value is not None:
            self.number(value)


def _status(number: int, message: str) -> BuildStatus:
    """The status with a number of the protocol; what has none of its own is told by its words."""
    if number > _MAX_STATUS:
        return BuildStatus.MISC_FAILURE
    if number == BuildStatus.OUTPUT_REJECTED and message.startswith("hash mismatch"):
        return BuildStatus.HASH_MISMATCH
    return BuildStatus(number)


def _times_built(result: BuildResult) -> int:
    """Nix counts a build that ran, whatever became of it; nothing else."""
    return 1 if result.start_time else 0


def parse_signature(text: str) -> str:
    """A signature of the form ``name:base64``. Raises ``FormatError``.

    Others see it, in terminals and in texts of many signatures with spaces between them.
    """
    name, colon, encoded = text.partition(":")
    if not (name and colon and encoded and text.isprintable()) or " " in text:
        raise FormatError(f"signature '{text[:100]}' is corrupt")
    return text


def parse_derived_path(text: str, store_dir: StoreDir, version: Version) -> DerivedPath:
    """Read ``path``, ``drv!*``, ``drv!out,dev`` or ``drv!out!inner``. Raises ``FormatError``."""
    base, *words = text.split("!")
    path = store_dir.parse(base)
    if not words:
        # Older clients mean all outputs of a derivation by its path alone.
        whole = version.minor < 30 and path.is_derivation
        return DerivedPath(path=path, is_built=whole, text=text)
    if not path.is_derivation:
        raise FormatError(f"'{text[:300]}' asks for outputs of what is no derivation")
    *through, names = words
    for name in through:
        check_name(name)
    if names in ("*", "") and (names or version.minor < 30):
        return DerivedPath(path=path, is_built=True, through=tuple(through), text=text)
    outputs = frozenset(names.split(","))
    for name in outputs:
        check_name(name)
    return DerivedPath(path=path, is_built=True, outputs=outputs, through=tuple(through), text=text)


def render_wish(wish: DerivedPath, store_dir: StoreDir) -> str:
    """What is wanted, as clients since 1.30 write it."""
    words = [store_dir.render(wish.path), *wish.through]
    if wish.is_built:
        words.append(",".join(sorted(wish.outputs)) or "*")
    return "!".join(words)


def is_content_addressing(derivation: Derivation) -> bool:
    """Whether all outputs are where their contents say, so that nobody has to be believed."""
    return derivation.kind not in (DerivationKind.INPUT_ADDRESSED, DerivationKind.DEFERRED)
