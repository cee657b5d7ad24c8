"""What clients add to the store."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

from executor.derivation import parse_method
from executor.errors import FormatError, StoreError
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm
from executor.formats.realisation import Realisation
from executor.formats.store_path import StorePath
from executor.formats.wire import Source
from executor.protocols.call import Call
from executor.protocols.errors import DisconnectedError, RefusedError
from executor.protocols.imports import add_archive, add_contents, require_signature
from executor.protocols.worker_messages import SIGNED_INFOS
from executor.store.log_files import LogFile, log_path
from executor.store.path_info import PathInfo
from executor.store.signing import parse_public_keys, verify_realisation

_MAX_NAME = 1 << 10
_MAX_WORD = 1 << 10
_MAX_LOG = 1 << 30
_PIECE = 1 << 18
# What signatures of a path come to that anybody may add, in characters: hundreds. Each question
# about the path is answered with all of them.
_MOST_SIGNATURES = 1 << 16


def add_to_store(call: Call) -> None:
    """A file or tree whose path follows from its contents."""
    if call.version.minor < 25:
        _add_to_store_old(call)
        return
    name, address = call.read.text(_MAX_NAME), call.read.text(_MAX_WORD)
    references, repair = call.read.paths(), call.read.boolean()
    call.begin()
    source = call.framed()
    if repair:
        _require_repair(call)
    call.session.view.require(references)
    method, algorithm = _method(address)
    path = add_contents(
        call.store, name, source, method, algorithm, references, _waiting(call), repair=repair
    )
    call.session.view.add([path])
    call.answer.path(path)
    call.answer.path_info(call.session.view.shown(call.store.query_path_info(path)))


def _method(address: str) -> tuple[IngestionMethod, HashAlgorithm]:
    """Read ``fixed:r:sha256``, ``fixed:sha256``, ``text:sha256``."""
    if address.startswith("text:"):
        return parse_method(address)
    kind, _, rest = address.partition(":")
    if kind != "fixed":
        raise FormatError(f"content address method '{address[:100]}' is not known")
    method, algorithm = parse_method(rest)
    if method not in (IngestionMethod.NAR, IngestionMethod.FLAT):
        raise FormatError(f"content address method '{address[:100]}' is not supported")
    return method, algorithm


def _add_to_store_old(call: Call) -> None:
    """Before 1.25: always an archive, as it is, which is read while it comes."""
    name, fixed = call.read.text(_MAX_NAME), call.read.boolean()
    recursive, algorithm = call.read.boolean(), call.read.text(_MAX_WORD)
    method = IngestionMethod.NAR if recursive or not fixed else IngestionMethod.FLAT
    path = add_contents(
        call.store,
        name,
        call.read,
        method,
        HashAlgorithm.parse(algorithm if fixed else "sha256"),
        frozenset(),
        _waiting(call),
        as_archive=True,
    )
    call.begin()
    call.session.view.add([path])
    call.answer.path(path)


def add_text_to_store(call: Call) -> None:
    """A text (before 1.25)."""
    name, data, references = call.read.text(_MAX_NAME), call.read.data(), call.read.paths()
    call.begin()
    call.session.view.require(references)
    path = add_contents(
        call.store,
        name,
        io.BytesIO(data),
        IngestionMethod.TEXT,
        HashAlgorithm.SHA256,
        references,
        _waiting(call),
    )
    call.session.view.add([path])
    call.answer.path(path)


def add_to_store_nar(call: Call) -> None:
    """One object as its archive."""
    path = call.read.path()
    info = call.read.path_info(path, SIGNED_INFOS)
    repair, unchecked = call.read.boolean(), call.read.boolean()
    call.begin()
    if not call.trusted:
        unchecked, info = False, replace(info, ultimate=False)
    source = call.framed() if call.version.minor >= 23 else call.tunnelled()
    _add_archive(call, info, source, repair=repair, unchecked=unchecked)


def add_multiple_to_store(call: Call) -> None:
    """Many objects as their archives, in one stream."""
    repair, unchecked = call.read.boolean(), call.read.boolean()
    call.begin()
    unchecked = unchecked and call.trusted
    stream = call.read.nested(call.framed(), SIGNED_INFOS)
    for _ in range(stream.count()):
        info = replace(stream.path_info(stream.path()), ultimate=False)
        _add_archive(call, info, stream, repair=repair, unchecked=unchecked)


def _add_archive(
    call: Call, info: PathInfo, source: Source, *, repair: bool, unchecked: bool
) -> None:
    if repair:
        _require_repair(call)
    if not call.trusted and len(" ".join(info.signatures)) > _MOST_SIGNATURES:
        raise RefusedError(f"'{info.path.base_name}' has more signatures than it may have")
    view = call.session.view
    view.require(info.references - {info.path})
    if not unchecked and _signatures_required(call):
        require_signature(call.store, info, call.session.settings.trusted_public_keys)
    prove = not view.shows_all
    add_archive(call.store, info, source, _waiting(call), repair=repair, prove=prove)
    view.add([info.path])


def _signatures_required(call: Call) -> bool:
    required = call.store.location.require_signatures
    return call.session.settings.require_sigs if required is None else required


def _require_repair(call: Call) -> None:
    """Replacing what others use is not for everybody; stock Nix lets anybody with a signature."""
    call.require_trust("you are not privileged to repair paths")


def _waiting(call: Call) -> Callable[[str], None]:
    """Tells the client once which lock it waits for, and gives up when it goes."""
    told = not call.begun  # it doesn't listen before

    def wait(path: str) -> None:
        nonlocal told
        if call.channel.hung_up:
            raise DisconnectedError("the client has gone")
        if not told:
            call.report(f"waiting for lock on '{path}'")
        told = True

    return wait


def add_signatures(call: Call) -> None:
    """Signatures for a valid path: anybody may add some, who checks believes keys."""
    path, signatures = call.read.path(), call.read.signatures()
    call.begin()
    call.store.add_signatures(path, signatures, 0 if call.trusted else _MOST_SIGNATURES)
    call.answer.number(1)


def register_drv_output(call: Call) -> None:
    """What an output came to be."""
    if call.version.minor < 31:
        realisation = Realisation(call.read.drv_output(), call.read.base_path())
    else:
        realisation = call.read.realisation()
    call.begin()
    if not call.store.realisations.enabled:
        raise StoreError("experimental Nix feature 'ca-derivations' is disabled")
    # Who is trusted may add any object without a signature, too; stock Nix believes everybody.
    keys = parse_public_keys(call.session.settings.trusted_public_keys)
    believed = call.trusted or not _signatures_required(call)
    if not (believed or verify_realisation(realisation, keys)):
        raise RefusedError(
            f"cannot register realisation '{realisation.id}' because it lacks a signature by a "
            "trusted key"
        )
    call.store.realisations.register([realisation])


def add_build_log(call: Call) -> None:
    """The log of a build that ran elsewhere."""
    drv_path: StorePath = call.read.base_path()
    call.begin()
    source = call.framed()
    call.require_trust("you are not privileged to add logs")
    if not drv_path.is_derivation:
        raise FormatError(f"'{drv_path}' is not a derivation")
    compress = call.session.settings.compress_build_log
    path = log_path(call.store.location.log_dir, drv_path, compress=compress)
    with LogFile(path, compress) as log:
        while data := source.read(_PIECE):
            if log.size + len(data) > _MAX_LOG:
                raise FormatError("the log is too long")
            log.write(data)
    call.answer.number(1)
