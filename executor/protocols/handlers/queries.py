"""Questions to the store."""

from __future__ import annotations

from executor.build.plan import known_outputs
from executor.caches.found import Found
from executor.errors import FormatError, InvalidPathError
from executor.formats import base32
from executor.formats.store_path import DIGEST_LENGTH, StorePath
from executor.protocols.call import Call
from executor.protocols.handlers.offers import offers_of, substitute
from executor.store.tree import dump_tree


def is_valid_path(call: Call) -> None:
    """Whether a path is valid."""
    path = call.read.path()
    call.begin()
    call.answer.boolean(call.store.is_valid(path))


def query_valid_paths(call: Call) -> None:
    """Those of some paths that are valid, perhaps fetched before."""
    paths = call.read.paths()
    wanted = call.version.minor >= 27 and call.read.boolean()
    call.begin()
    if wanted:
        substitute(call.session, paths)
    call.answer.paths(call.store.query_valid(paths))


def query_referrers(call: Call) -> None:
    """What refers to a path."""
    path = call.read.path()
    call.begin()
    call.answer.paths(call.store.query_referrers(path))


def query_valid_derivers(call: Call) -> None:
    """Derivations that have a path as output."""
    path = call.read.path()
    call.begin()
    call.answer.paths(call.store.query_derivers(path))


def query_deriver(call: Call) -> None:
    """What a path was built from."""
    path = call.read.path()
    call.begin()
    call.answer.optional_path(call.store.query_deriver(path))


def _outputs(call: Call) -> dict[str, StorePath | None]:
    """The outputs of a derivation, with their paths where these are known."""
    path = call.read.path()
    call.begin()
    return outputs_of(call, path)


def outputs_of(call: Call, path: StorePath) -> dict[str, StorePath | None]:
    """The outputs of one derivation."""
    derivation = call.store.read_derivation(path)
    known = known_outputs(call.store, derivation)
    return {name: known.get(name) for name in derivation.outputs}


def query_derivation_outputs(call: Call) -> None:
    """Paths of a derivation's outputs, as far as they are known."""
    found = _outputs(call).values()
    call.answer.paths({path for path in found if path is not None})


def query_derivation_output_names(call: Call) -> None:
    """Names of a derivation's outputs."""
    call.answer.texts(sorted(_outputs(call)))


def query_derivation_output_map(call: Call) -> None:
    """A derivation's outputs with their paths, as far as these are known."""
    call.answer.output_map(_outputs(call))


def query_path_from_hash_part(call: Call) -> None:
    """The path with a hash part."""
    part = call.read.text(256)
    call.begin()
    if len(part) != DIGEST_LENGTH or not base32.is_valid(part):
        raise FormatError("invalid hash part")
    call.answer.optional_path(call.store.path_from_hash_part(part))


def query_all_valid_paths(call: Call) -> None:
    """Every valid path."""
    call.begin()
    call.answer.paths(call.store.query_all_valid())


def query_path_info(call: Call) -> None:
    """What is known of a path."""
    path = call.read.path()
    call.begin()
    try:
        info = call.store.query_path_info(path)
    except InvalidPathError:
        call.answer.number(0)
        return
    call.answer.number(1)
    call.answer.path_info(info)


def nar_from_path(call: Call) -> None:
    """The archive comes after the frames, as it is."""
    path = call.read.path()
    call.begin()
    send_archive(call, path)


def send_archive(call: Call, path: StorePath) -> None:
    """Answer with the archive of a path."""
    call.store.add_temp_root(path)
    if not call.store.is_valid(path):
        raise InvalidPathError(f"path '{call.store.store_dir.render(path)}' is not valid")
    call.end()
    dump_tree(call.store.store_fd, path.base_name.encode(), call.channel.write)


def query_realisation(call: Call) -> None:
    """What an output came to be."""
    key = call.read.drv_output()
    call.begin()
    found = call.store.realisations.query(key)
    known = [] if found is None else [found]
    if call.version.minor >= 31:
        call.answer.realisations(known)
    else:
        call.answer.number(len(known))
        for realisation in known:
            call.answer.path(realisation.path)


def query_substitutable_paths(call: Call) -> None:
    """Those of some paths that somebody offers."""
    paths = call.read.paths()
    call.begin()
    call.answer.paths(offers_of(call, dict.fromkeys(paths)).keys())


def query_substitutable_path_info(call: Call) -> None:
    """The offer of one path."""
    path = call.read.path()
    call.begin()
    found = offers_of(call, {path: None}).get(path)
    call.answer.boolean(found is not None)
    if found is not None:
        _offer(call, found)


def query_substitutable_path_infos(call: Call) -> None:
    """Offers of many paths."""
    if call.version.minor >= 22:
        wanted = call.read.path_addresses()
    else:
        wanted = dict.fromkeys(call.read.paths())
    call.begin()
    found = offers_of(call, wanted)
    call.answer.number(len(found))
    for path, offer in sorted(found.items()):
        call.answer.path(path)
        _offer(call, offer)


def _offer(call: Call, found: Found) -> None:
    call.answer.optional_path(found.info.deriver)
    call.answer.paths(found.info.references)
    call.answer.number(found.file_size or 0)
    call.answer.number(found.info.nar_size)
