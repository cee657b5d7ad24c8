"""One operation on its way: what its handler reads from, tells to, and answers with."""

from __future__ import annotations

from collections.abc import Callable

from executor.errors import FormatError
from executor.formats.wire import FramedReader, Source
from executor.protocols import worker_frames as frames
from executor.protocols.channel import Channel
from executor.protocols.errors import RefusedError
from executor.protocols.session import Session
from executor.protocols.telling import notice_frame
from executor.protocols.worker_messages import MessageReader, MessageWriter
from executor.protocols.worker_protocol import Version
from executor.store.local import LocalStore


class Call:
    """What a handler gets.

    It reads all that the client has sent (``read``), calls ``begin``, does its work, and writes to
    ``answer``. An error before ``begin`` ends the connection, because nobody knows where the next
    message begins; one after it is told, and the connection goes on.
    """

    def __init__(self, session: Session, reader: MessageReader, channel: Channel) -> None:
        self.session = session
        self.read = reader
        self.channel = channel
        self.answer = MessageWriter(reader.store_dir, reader.version)
        self.begun = False
        self.ended = False
        self._frames: FramedReader | None = None
        self._tunnel: TunnelReader | None = None

    @property
    def version(self) -> Version:
        return self.read.version

    @property
    def store(self) -> LocalStore:
        return self.session.store

    @property
    def trusted(self) -> bool:
        return self.session.client.trusted

    def begin(self) -> None:
        """All is read; from now on things are told."""
        self.begun = True

    def tell(self, level: int, text: str, *, plain: bool = False) -> None:
        """Tell the client something, at once, if it wants to hear of that level.

        Errors and warnings are called so, unless they are ``plain``.
        """
        if level <= self.session.verbosity:
            self.channel.write(frames.message(text) if plain else notice_frame(level, text))
            self.channel.flush()

    def report(self, text: str) -> None:
        """Tell the client how it goes."""
        self.tell(3, text)

    def require_trust(self, text: str) -> None:
        """Raises ``RefusedError`` for a client who isn't trusted."""
        if not self.trusted:
            raise RefusedError(text)

    def framed(self) -> FramedReader:
        """The stream that follows; what is left of it is read when the operation has ended."""
        self._frames = FramedReader(self.read)
        return self._frames

    def tunnelled(self) -> Source:
        """The stream that the client sends piece by piece when it is asked to (before 1.23)."""
        self._tunnel = TunnelReader(self.read, self.channel)
        return self._tunnel

    def end(self) -> None:
        """The work is done; what the handler writes to the channel itself comes next."""
        if not self.ended:
            self.ended = True
            self.settle()
            self.channel.write(frames.last())

    def settle(self) -> None:
        """Read what is left of a framed stream."""
        if self._frames is not None:
            self._frames.drain()


class TunnelReader:
    """Asks the client for each piece."""

    _PIECE = 64 << 10

    def __init__(self, reader: MessageReader, channel: Channel) -> None:
        self._reader = reader
        self._write: Callable[[bytes], None] = channel.write
        self._data = b""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes. Raises ``FormatError`` where the client has no more."""
        if not self._data:
            self._write(frames.ask_for_data(self._PIECE))
            self._data = self._reader.data(self._PIECE)
            if not self._data:
                raise FormatError("unexpected end-of-file")
        data, self._data = self._data[:size], self._data[size:]
        return data
