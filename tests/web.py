"""A web server of one test, whose answers are set beforehand."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says; ``cut`` makes it promise more than it sends, ``wait`` say it later."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int = 0
    wait: threading.Event | None = None


class Server:
    """Answers by path, each answer of a list once and the last one for ever.

    Other paths are those of files below ``directory``, if there is one.
    """

    def __init__(self, http: ThreadingHTTPServer) -> None:
        self._http = http
        self.directory: Path | None = None
        self.connections = 0
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, Mapping[str, str]]] = []

    def url(self, path: str, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self._http.server_port}{path}"

    def offer(self, path: str, *answers: Answer) -> str:
        self.answers[path] = list(answers)
        return self.url(path)

    def next(self, path: str) -> Answer:
        answers = self.answers.get(path)
        if answers is None:
            return self._file(path)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def _file(self, path: str) -> Answer:
        file = None if self.directory is None else self.directory / path.lstrip("/")
        if file is None or not file.is_file():
            return Answer(404)
        return Answer(body=file.read_bytes())

    @property
    def paths(self) -> list[str]:
        return [path for path, _headers in self.requests]


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            found.connections += 1

        def do_GET(self) -> None:
            found.requests.append((self.path, dict(self.headers)))
            answer = found.next(self.path)
            if answer.wait is not None:
                answer.wait.wait(_PATIENCE)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body) + answer.cut))
            self.end_headers()
            self.wfile.write(answer.body)
            self.close_connection = self.close_connection or bool(answer.cut)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    found = Server(http)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    http.shutdown()
    thread.join(20)
    http.server_close()
