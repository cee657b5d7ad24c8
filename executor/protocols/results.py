"""How a build went, as clients of every protocol are told: texts, and what outputs came to be."""

from __future__ import annotations

from executor.build.event_texts import MESSAGE_LIMIT
from executor.build.result import BuildResult
from executor.derivation import Derivation
from executor.errors import ExecutorError
from executor.formats.realisation import DrvOutput, Realisation
from executor.store.local import LocalStore


def short_text(result: BuildResult) -> str:
    """Why a build failed, for who has its log already."""
    text = result.message
    if result.kept_build_directory is not None:
        text += f"\nnote: keeping build directory '{result.kept_build_directory}'"
    return text[:MESSAGE_LIMIT]


def realisations_of(
    store: LocalStore, result: BuildResult, wanted: frozenset[str], derivation: Derivation | None
) -> dict[str, Realisation]:
    """What outputs came to be, by the names that clients know them by; all if none are wanted."""
    if not result.outputs:
        return {}
    if derivation is None:
        try:
            derivation = store.read_derivation(result.drv_path)
        except ExecutorError:
            return {}
    hashes = store.modulo_hasher.output_hashes(derivation)
    found = {}
    for output, path in result.outputs.items():
        if wanted and output not in wanted:
            continue
        key = DrvOutput.of(hashes[output], output)
        known = store.realisations.query(key)
        if known is None or known.path != path:
            known = Realisation(key, path)
        found[output] = known
    return found
