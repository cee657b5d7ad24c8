"""Bringing staged outputs into the store: checks, then renames, then one transaction.

Runs in the store's thread. Nothing is moved before every check has passed, so a rejected output
never appears in the store; a fixed output with another hash than promised is the one exception,
kept under the path that its contents have, as in Nix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from executor.build.failure import BuildFailure
from executor.build.output_checks import check_outputs
from executor.build.outputs import OutputRules, StagedOutput
from executor.build.options import DerivationOptions
from executor.build.result import BuildStatus, FailureCause
from executor.derivation import FixedOutput
from executor.formats.content_address import ContentAddress
from executor.store.local import LocalStore
from executor.store.path_info import PathInfo
from executor.store.signing import SecretKey, sign


def install(
    store: LocalStore,
    staged: Sequence[StagedOutput],
    rules: OutputRules,
    options: DerivationOptions,
    keys: Sequence[SecretKey],
) -> None:
    """Check the outputs of one build and register them all, or raise ``BuildFailure``."""
    for item in staged:
        _check_fixed(store, item, rules, keys)
    check_outputs(store, staged, rules, options)
    _move_and_register(store, staged, keys)


def _check_fixed(
    store: LocalStore, item: StagedOutput, rules: OutputRules, keys: Sequence[SecretKey]
) -> None:
    """The hash that was promised, and no references (rows O8, O9)."""
    specification = rules.derivation.outputs[item.output]
    if not isinstance(specification, FixedOutput):
        return
    name = rules.store_dir.render(rules.drv_path)
    if item.info.path != rules.outputs[item.output]:
        actual = ContentAddress.parse(item.info.content_address or "").hash
        if not item.info.references:
            _move_and_register(store, [item], keys)
        raise BuildFailure(
            BuildStatus.HASH_MISMATCH,
            f"hash mismatch in fixed-output derivation '{name}': "
            f"specified: {specification.hash.sri}, got: {actual.sri}",
            FailureCause.OUTPUT,
        )
    if item.info.references:
        example = store.store_dir.render(min(item.info.references))
        raise BuildFailure(
            BuildStatus.HASH_MISMATCH,
            f"fixed-output derivations must not reference store paths: '{name}' references "
            f"{len(item.info.references)} distinct paths, e.g. '{example}'",
            FailureCause.OUTPUT,
        )


def _move_and_register(
    store: LocalStore, staged: Sequence[StagedOutput], keys: Sequence[SecretKey]
) -> None:
    infos: list[PathInfo] = []
    for item in staged:
        if store.is_valid(item.info.path):
            continue  # made by somebody else meanwhile; the same contents, as the path says
        store.move_into_store(item.directory_fd, item.name, item.info.path)
        signatures = sign(item.info, store.store_dir, keys) if keys else ()
        infos.append(replace(item.info, signatures=signatures))
    if infos:
        store.register(infos)
