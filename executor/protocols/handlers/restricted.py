"""What a builder may ask over the socket in its sandbox (``recursive-nix``, attack row 63).

As Nix's ``RestrictedStore``, and where that differs, less: nothing is told of paths that the
builder doesn't see, nothing of who made a path and when, and no setting is changed. What an
operation would do to the store as a whole, it doesn't do. ``Op`` by ``Op``: what isn't in the table
is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from executor.errors import InvalidPathError
from executor.formats.store_path import StorePath
from executor.protocols.call import Call
from executor.protocols.errors import RefusedError
from executor.protocols.handlers import adding, building, options, queries
from executor.protocols.worker_messages import DerivedPath
from executor.protocols.worker_protocol import Op
from executor.store.derivations import static_outputs
from executor.store.local import LocalStore
from executor.store.path_info import PathInfo

_MAX_VALUE = 1 << 20


class Seen(Protocol):
    """What the builder sees."""

    def allows(self, path: StorePath) -> bool: ...

    def all(self) -> frozenset[StorePath]: ...

    def shown(self, info: PathInfo) -> PathInfo: ...

    def require_inputs(self, store: LocalStore, wishes: Sequence[DerivedPath]) -> None: ...


def restricted_handlers(seen: Seen) -> Mapping[Op, Callable[[Call], None]]:
    """The operations of one builder."""
    answers = _Answers(seen)
    return {
        Op.IS_VALID_PATH: answers.is_valid_path,
        Op.QUERY_VALID_PATHS: answers.query_valid_paths,
        Op.QUERY_ALL_VALID_PATHS: answers.query_all_valid_paths,
        Op.QUERY_PATH_INFO: answers.query_path_info,
        Op.QUERY_REFERRERS: answers.no_paths,
        Op.QUERY_VALID_DERIVERS: answers.no_paths,
        Op.QUERY_DERIVER: answers.query_deriver,
        Op.QUERY_DERIVATION_OUTPUT_MAP: answers.query_output_map,
        Op.QUERY_REALISATION: answers.query_realisation,
        Op.QUERY_SUBSTITUTABLE_PATHS: answers.query_substitutable_paths,
        Op.QUERY_MISSING: answers.query_missing,
        Op.NAR_FROM_PATH: answers.nar_from_path,
        Op.ENSURE_PATH: answers.ensure_path,
        Op.BUILD_PATHS: building.build_paths,
        Op.BUILD_PATHS_WITH_RESULTS: building.build_paths_with_results,
        Op.ADD_TO_STORE: adding.add_to_store,
        Op.ADD_TEXT_TO_STORE: adding.add_text_to_store,
        Op.ADD_TO_STORE_NAR: adding.add_to_store_nar,
        Op.ADD_MULTIPLE_TO_STORE: adding.add_multiple_to_store,
        Op.SET_OPTIONS: answers.set_options,
        Op.SYNC_WITH_GC: options.sync_with_gc,
        Op.ADD_TEMP_ROOT: answers.ignore_path,
        Op.ADD_INDIRECT_ROOT: answers.ignore_link,
        Op.FIND_ROOTS: answers.find_roots,
        Op.COLLECT_GARBAGE: answers.collect_garbage,
        Op.OPTIMISE_STORE: answers.optimise_store,
        Op.VERIFY_STORE: answers.verify_store,
    }


class _Answers:
    """The handlers."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def is_valid_path(self, call: Call) -> None:
        """Whether a path is valid, and for this builder."""
        path = call.read.path()
        call.begin()
        call.answer.boolean(self._seen.allows(path) and call.store.is_valid(path))

    def query_valid_paths(self, call: Call) -> None:
        """Those of some paths; nothing is fetched."""
        paths = call.read.paths()
        if call.version.minor >= 27:
            call.read.boolean()
        call.begin()
        seen = [path for path in paths if self._seen.allows(path)]
        call.answer.paths(call.store.query_valid(seen))

    def query_all_valid_paths(self, call: Call) -> None:
        """All that the builder sees."""
        call.begin()
        call.answer.paths(self._seen.all())

    def query_path_info(self, call: Call) -> None:
        """What is known of a path, without what has nothing to do with its contents."""
        path = call.read.path()
        call.begin()
        try:
            if not self._seen.allows(path):
                raise InvalidPathError(str(path))
            info = call.store.query_path_info(path)
        except InvalidPathError:
            call.answer.number(0)
            return
        call.answer.number(1)
        call.answer.path_info(self._seen.shown(info))

    def no_paths(self, call: Call) -> None:
        """A question about others than the path itself."""
        call.read.path()
        call.begin()
        call.answer.paths(())

    def query_deriver(self, call: Call) -> None:
        """Nobody is told who made a path."""
        path = call.read.path()
        call.begin()
        self._require(call, path, "path '{}' is not valid")
        call.answer.optional_path(None)

    def query_output_map(self, call: Call) -> None:
        """The outputs of a derivation that the builder knows."""
        path = call.read.path()
        call.begin()
        self._require(call, path, "cannot query output map for unknown path '{}' in recursive Nix")
        # What another build of it came to be is news; what follows from it alone is not.
        static = static_outputs(call.store.read_derivation(path), call.store.store_dir)
        known = queries.outputs_of(call, path)
        call.answer.output_map(
            {
                name: output
                if output is not None and self._seen.allows(output)
                else static.get(name)
                for name, output in known.items()
            }
        )

    def query_realisation(self, call: Call) -> None:
        """What an output came to be, if the builder sees that."""
        key = call.read.drv_output()
        call.begin()
        found = call.store.realisations.query(key)
        known = [] if found is None or not self._seen.allows(found.path) else [found]
        if call.version.minor >= 31:
            call.answer.realisations(known)
        else:
            call.answer.paths([realisation.path for realisation in known])

    def query_substitutable_paths(self, call: Call) -> None:
        """Nobody offers anything here."""
        call.read.paths()
        call.begin()
        call.answer.paths(())

    def query_missing(self, call: Call) -> None:
        """What building would do; of what the builder doesn't see, nothing is known."""
        wishes = call.read.derived_paths()
        call.begin()
        known = [wish for wish in wishes if self._seen.allows(wish.path)]
        others = {wish.path for wish in wishes if not self._seen.allows(wish.path)}
        self._seen.require_inputs(call.store, known)
        building.answer_missing(call, known, others)

    def nar_from_path(self, call: Call) -> None:
        """The archive of a path that the builder sees."""
        path = call.read.path()
        call.begin()
        self._require(call, path, "cannot dump unknown path '{}' in recursive Nix")
        queries.send_archive(call, path)

    def ensure_path(self, call: Call) -> None:
        """What the builder sees is there."""
        path = call.read.path()
        call.begin()
        self._require(call, path, "cannot substitute unknown path '{}' in recursive Nix")
        call.answer.number(1)

    def set_options(self, call: Call) -> None:
        """Read, and not obeyed."""
        for _ in range(12):
            call.read.number()
        for _ in range(call.read.count()):
            call.read.text(_MAX_VALUE)
            call.read.text(_MAX_VALUE)
        call.begin()

    def ignore_path(self, call: Call) -> None:
        """What the builder sees is kept anyway."""
        call.read.path()
        call.begin()
        call.answer.number(1)

    def ignore_link(self, call: Call) -> None:
        """A link in the sandbox keeps nothing."""
        call.read.text(_MAX_VALUE)
        call.begin()
        call.answer.number(1)

    def find_roots(self, call: Call) -> None:
        """None."""
        call.begin()
        call.answer.number(0)

    def collect_garbage(self, call: Call) -> None:
        """Nothing is garbage."""
        call.read.number()
        call.read.paths()
        for _ in range(5):
            call.read.number()
        call.begin()
        call.answer.texts(())
        call.answer.number(0)
        call.answer.number(0)

    def optimise_store(self, call: Call) -> None:
        """Not for a builder."""
        call.begin()
        call.answer.number(1)

    def verify_store(self, call: Call) -> None:
        """Not for a builder: it hears of no problem, and nothing is repaired."""
        call.read.boolean()
        repair = call.read.boolean()
        call.begin()
        if repair:
            raise RefusedError("you are not privileged to repair paths")
        call.answer.number(0)

    def _require(self, call: Call, path: StorePath, text: str) -> None:
        if not self._seen.allows(path):
            raise InvalidPathError(text.format(call.store.store_dir.render(path)))
