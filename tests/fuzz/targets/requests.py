"""What is asked of the build hook and of the service of external builds, and that one's answers."""

from __future__ import annotations

import io
import json
from collections.abc import Hashable
from dataclasses import fields
from functools import lru_cache
from typing import NoReturn

from executor.build.hook_protocol import (
    Request,
    build_message,
    request_message,
    settings_message,
)
from executor.config import Settings
from executor.errors import FormatError
from executor.formats.wire import WireReader
from executor.protocols.external_client import Job, follow
from executor.protocols.external_messages import (
    ended_frame,
    log_frame,
    output_frame,
    read_request,
    refused_frame,
    started_frame,
    stopped_frame,
    write_request,
)
from executor.protocols.hook_requests import (
    message,
    read_settings,
    read_try,
    read_wanted,
    settings_for_caller,
)
from executor.protocols.worker_messages import MessageReader
from executor.protocols.worker_protocol import LATEST
from tests.fuzz.harness import Target
from tests.fuzz.targets.names import PATH, STORE_DIR, expect
from tests.fuzz.targets.protocols import TOKENS, Paid

_DRV = PATH.decode() + ".drv"
_OURS = Settings()
_LONGEST = 200
# What no caller of a hook may change: the sandbox itself, and who may do what.
_KEPT = [
    field.name
    for field in fields(Settings)
    if field.name.startswith(("build_users", "trusted", "allowed_users", "fod_", "build_limits"))
]
_SETTINGS = (
    *(("timeout", "10"), ("cores", "4"), ("sandbox-paths", "/a=/b"), ("max-build-log-size", "9")),
    *(("system-features", "kvm big"), ("pre-build-hook", "/x"), ("impure-env", "A=b")),
    *(("build-users-group", "x"), ("trusted-users", "*"), ("sandbox", "false")),
)


@lru_cache(1 << 12)
def _obey(name: str, value: str) -> None:
    """One setting at a time: all of them together take longer than the rest."""
    settings = settings_for_caller(_OURS, {name: value})
    for kept in _KEPT:
        expect(getattr(settings, kept) == getattr(_OURS, kept), "a caller changes what it may not")


def _hook_request(data: bytes) -> Hashable:
    stream = io.BytesIO(data)
    told = read_settings(WireReader(stream, Paid()))
    for name in told:
        _obey(name, told[name][:_LONGEST])
    reader = MessageReader(stream, STORE_DIR, LATEST, Paid())
    offers = 0
    while (offer := read_try(reader)) is not None:
        line = message(5, f"declines '{offer.drv_path}' for {offer.system}")
        expect(b"\n" not in line, "a message is more than a line")
        offers += 1
        wanted = read_wanted(reader)
    return offers, len(wanted) if offers else 0, len(told)


def _external_request(data: bytes) -> Hashable:
    """A document by itself, or a whole request, by the first byte."""
    whole = data[1:] if data[:1] == b"\1" else write_request(data[1:], {b"f": b"x"})
    request = read_request(WireReader(io.BytesIO(whole), Paid()), STORE_DIR)
    names = [name for name, _content in request.files]
    expect(not any(b"/" in name or name in (b"", b".", b"..") for name in names), "a file's name")
    words = (request.builder, *request.arguments, *request.environment.values())
    expect(not any(b"\0" in word for word in words), "a word has a zero byte")
    expect(not any(b"=" in name or not name for name in request.environment), "a variable's name")
    return len(request.outputs), len(request.inputs), request.has_network, len(names)


class _DiedError(Exception):
    """Would have killed itself."""


def _die_by(number: int) -> NoReturn:
    expect(0 <= number <= 64, "no signal")
    raise _DiedError


def _external_answer(data: bytes) -> Hashable:
    job = Job(document=b"", build_directory="/", real_store="/nonexistent", outputs={})
    written: list[bytes] = []
    code = follow(job, WireReader(io.BytesIO(data), Paid()), written.append, _die_by)
    expect(0 <= code <= 255, "no exit code")
    return code, len(written)


_DOCUMENT = {
    "version": 1,
    "builder": "/bin/sh",
    "args": ["-c", "true"],
    "env": {"out": PATH.decode(), "NIX_OUTPUT_CHECKED": "1"},
    "storeDir": "/nix/store",
    "tmpDirInSandbox": "/build",
    "system": "x86_64-linux",
    "inputPaths": [PATH.decode()],
    "outputs": {"out": PATH.decode()},
}
_JSON_TOKENS = (
    *(b'"\\ud800"', b'"\\u0000"', b"NaN", b"1e999", b"null", b"true", b"[" * 300, b"[],", b"{}"),
    *(b'"outputs":', b'"inputPaths":', b'"env":', b'"args":', b'"..":', b'"a=b":', b'"":', b"\xff"),
)
_REQUEST = Request(willing=True, system="x86_64-linux", drv_path=_DRV, features=["kvm"])
_CONVERSATION = request_message(_REQUEST) + build_message([PATH.decode()], ["out"])
_ANSWERS = (
    started_frame() + log_frame(b"said") + ended_frame(3, None),
    started_frame() + stopped_frame("too much"),
    started_frame() + ended_frame(None, 9),
    refused_frame("no"),
    started_frame() + output_frame("out"),
)

TARGETS = (
    Target(
        name="hook-request",
        run=_hook_request,
        errors=(FormatError,),
        inputs=(
            settings_message(_SETTINGS) + _CONVERSATION * 2 + bytes(8),
            settings_message(()) + _CONVERSATION + bytes(8),
            settings_message(_SETTINGS[:1]) + bytes(8),
        ),
        tokens=(*TOKENS, *(settings_message([pair])[:-8] for pair in _SETTINGS), _CONVERSATION),
    ),
    Target(
        name="external-request",
        run=_external_request,
        errors=(FormatError,),
        inputs=(
            b"\0" + json.dumps(_DOCUMENT).encode(),
            b"\1" + write_request(json.dumps(_DOCUMENT).encode(), {b"a": b"x", b"b": b""}),
        ),
        tokens=(*TOKENS, *_JSON_TOKENS),
    ),
    Target(
        name="external-answer",
        run=_external_answer,
        errors=(FormatError, _DiedError),
        inputs=_ANSWERS,
        tokens=(*TOKENS, *_ANSWERS, ended_frame(255, None)),
    ),
)
