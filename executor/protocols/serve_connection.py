"""One connection of the serve protocol: ``nix-store --serve``, which ``ssh://`` starts.

As there, what goes wrong ends the connection and is told as text beside it, and builders' output
is such text, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from executor.build.event_texts import failure_text
from executor.build.events import BuildLogLine, Event, Notice
from executor.build.result import BuildResult, BuildStatus
from executor.config import Settings
from executor.errors import FormatError
from executor.formats.store_path import StoreDir
from executor.protocols.channel import Allowance, Channel, Purse
from executor.protocols.errors import DisconnectedError
from executor.protocols.outlet import Outlet
from executor.protocols.peers import Client
from executor.protocols.serve_backend import LocalBackend, ServeBackend
from executor.protocols.serve_messages import (
    SPELLING,
    read_build_options,
    read_new_object,
    write_build_result,
    write_path_info,
)
from executor.protocols.serve_protocol import (
    CLIENT_MAGIC,
    LATEST_MINOR,
    SERVER_MAGIC,
    Command,
    agree,
    wire_version,
)
from executor.protocols.session import Host, Session
from executor.protocols.worker_connection import MESSAGE_LIMIT, USER_LIMIT
from executor.protocols.worker_messages import MessageReader, MessageWriter, parse_derived_path
from executor.store.local import LocalStore
from executor.store.location import StoreLocation
from executor.store.settings import StoreSettings

_MAX_TARGET = 1 << 16
_ERROR = 0


@contextmanager
def reading_backend(location: StoreLocation, settings: Settings) -> Iterator[LocalBackend]:
    """A store of this machine that is open for reading only. Raises ``StoreError``."""
    store_settings = StoreSettings.of(settings)
    with LocalStore.open(location, read_only=True, settings=store_settings) as store:
        yield LocalBackend(store, settings, None)


@contextmanager
def writing_backend(host: Host, channel: Channel, texts: Outlet) -> Iterator[LocalBackend]:
    """A store of this machine with all that building needs; what is told goes to ``texts``."""

    def hear(event: Event) -> None:
        if isinstance(event, BuildLogLine):
            texts.put(event.line + b"\n")
        elif isinstance(event, Notice) and event.level == _ERROR:
            texts.put(f"error: {event.text}\n".encode("utf-8", "replace"))

    session = Session(host, Client(name="standard input", trusted=True), channel, hear)
    try:
        yield LocalBackend(session.store, host.settings, session)
    finally:
        session.close()


class ServeConnection:
    """Serves one client until it goes; in one thread."""

    def __init__(
        self, channel: Channel, store_dir: StoreDir, backend: ServeBackend, texts: Outlet
    ) -> None:
        self._channel = channel
        self._store_dir = store_dir
        self._backend = backend
        self._texts = texts
        self._purse = Purse(Allowance(USER_LIMIT), MESSAGE_LIMIT)
        self._read = MessageReader(channel, store_dir, SPELLING, self._purse.pay)
        self._answer = MessageWriter(store_dir, SPELLING)
        self._minor = LATEST_MINOR
        self._awaited = ""

    def serve(self) -> None:
        """Answer until the client has no more questions.

        Raises ``ExecutorError`` and ``OSError`` for what ends the connection, and
        ``DisconnectedError`` where the client has gone.
        """
        self._handshake()
        while self._next_command():
            pass

    def _handshake(self) -> None:
        if self._read.number() != CLIENT_MAGIC:
            raise FormatError("protocol mismatch")
        self._answer.number(SERVER_MAGIC)
        self._answer.number(wire_version(LATEST_MINOR))
        self._send()
        self._minor = agree(self._read.number())

    def _next_command(self) -> bool:
        """Serve one command; False when there is none any more."""
        first = self._channel.read(1)
        if not first:
            return False
        number = int.from_bytes(first + self._read.exactly(7), "little")
        handler = _HANDLERS.get(number)
        if handler is None:
            raise FormatError(f"unknown serve command {number}")
        try:
            handler(self)
            self._send()
        finally:
            self._purse.empty()
        return True

    def _send(self) -> None:
        self._channel.write(self._answer.take())
        self._channel.flush()

    def _waiting(self, path: str) -> None:
        if self._channel.hung_up:
            raise DisconnectedError("the client has gone")
        if path != self._awaited:
            self._texts.put(f"waiting for lock on '{path}'\n".encode("utf-8", "replace"))
        self._awaited = path

    # Questions.

    def query_valid_paths(self) -> None:
        """Those of some paths that are valid, perhaps kept from the collector, perhaps fetched."""
        lock, fetch, paths = self._read.boolean(), self._read.boolean(), self._read.paths()
        self._answer.paths(self._backend.query_valid(paths, lock=lock, fetch=fetch))

    def query_path_infos(self) -> None:
        """What is known of those of some paths that are valid."""
        for path, info in sorted(self._backend.query_infos(self._read.paths()).items()):
            self._answer.path(path)
            write_path_info(self._answer, info, self._minor)
        self._answer.text("")

    def query_closure(self) -> None:
        """Paths and all that they refer to, and then that of their outputs."""
        with_outputs, paths = self._read.boolean(), self._read.paths()
        closure = self._backend.query_closure(paths)
        new = closure if with_outputs else set()
        while new:
            found = {
                output
                for path in new
                if path.is_derivation
                for output in self._backend.query_outputs(path)
            }
            new = self._backend.query_closure(found) - closure if found else set()
            closure = closure | new
        self._answer.paths(closure)

    # Contents.

    def dump_store_path(self) -> None:
        """The archive of a path."""
        self._backend.dump(self._read.path(), self._channel.write)

    def export_paths(self) -> None:
        """Archives of some paths, with what is known of them."""
        self._read.number()  # whether to sign: obsolete
        self._backend.export(self._read.paths(), self._channel.write)

    def import_paths(self) -> None:
        """Objects of an export."""
        self._backend.require_writing("importing")
        self._backend.import_objects(self._read, self._waiting)
        self._answer.number(1)

    def add_to_store_nar(self) -> None:
        """One object as its archive. Who may write is believed: as by Nix, without a signature."""
        self._backend.require_writing("importing")
        self._backend.add(read_new_object(self._read), self._read, self._waiting)
        self._answer.number(1)

    # Building.

    def build_paths(self) -> None:
        """Build and fetch: 0, or the status of a failure and why.

        Nix sends the exit code of a command line, which its clients read as a status; 1 would be a
        success to them.
        """
        self._backend.require_writing("building")
        texts = self._read.texts(_MAX_TARGET)
        wishes = [parse_derived_path(text, self._store_dir, SPELLING) for text in texts]
        options = read_build_options(self._read, self._minor)
        results = self._backend.build_paths(wishes, options)
        failed = [result for result in results if not result.success]
        guilty = [result for result in failed if result.status is not BuildStatus.CANCELLED]
        if not failed:
            self._answer.number(0)
            return
        self._answer.number((guilty or failed)[0].status.wire)
        self._answer.text("\n".join(map(self._text, guilty)) or "the build was cancelled")

    def build_derivation(self) -> None:
        """Build a derivation that the client sends."""
        self._backend.require_writing("building")
        drv_path = self._read.path()
        derivation = self._read.basic_derivation(drv_path)
        options = read_build_options(self._read, self._minor)
        result, realisations = self._backend.build_derivation(drv_path, derivation, options)
        text = "" if result.success else self._text(result)
        write_build_result(self._answer, result, text, realisations, self._minor)

    def _text(self, result: BuildResult) -> str:
        return failure_text(self._store_dir, result)


_HANDLERS: Mapping[int, Callable[[ServeConnection], None]] = {
    Command.QUERY_VALID_PATHS: ServeConnection.query_valid_paths,
    Command.QUERY_PATH_INFOS: ServeConnection.query_path_infos,
    Command.DUMP_STORE_PATH: ServeConnection.dump_store_path,
    Command.IMPORT_PATHS: ServeConnection.import_paths,
    Command.EXPORT_PATHS: ServeConnection.export_paths,
    Command.BUILD_PATHS: ServeConnection.build_paths,
    Command.QUERY_CLOSURE: ServeConnection.query_closure,
    Command.BUILD_DERIVATION: ServeConnection.build_derivation,
    Command.ADD_TO_STORE_NAR: ServeConnection.add_to_store_nar,
}
