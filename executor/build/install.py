"""Bringing staged outputs into the store: checks, then renames, then one transaction.

Runs in the store's thread. Nothing is moved before every check has passed, so a rejected output
never appears in the store; a fixed output with another hash than promised is the one exception,
kept under the path that its contents have, as in Nix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from executor.build.failure import BuildFailureError, rejected_output, unable
from executor.build.output_checks import (
    FixedOutputError,
    OutputCheckError,
    UnaddressableOutputError,
    check_fixed_output,
    check_outputs,
)
from executor.build.outputs import OutputRules, collect_outputs
from executor.build.prepare import Preparation
from executor.build.result import BuildStatus, FailureCause
from executor.build.staged import StagedOutput
from executor.build.workspace import Workspace
from executor.derivation import FixedOutput
from executor.errors import ExecutorError
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from executor.store.path_info import PathInfo
from executor.store.progress import Progress
from executor.store.signing import SecretKey, sign, sign_realisation


def install(
    store: LocalStore,
    staged: Sequence[StagedOutput],
    preparation: Preparation,
    keys: Sequence[SecretKey],
    *,
    keep_wrong: bool = True,
) -> None:
    """Check the outputs of one build and register them all, or raise ``BuildFailureError``.

    ``keep_wrong`` registers a fixed output with another hash under its true path.
    """
    name = store.store_dir.render(preparation.drv_path)
    for item in staged:
        check_fixed(store, item, preparation, keys, keep_wrong=keep_wrong)
    infos = {item.output: item.info for item in staged}
    valid = {
        output: preparation.outputs[output]
        for output in preparation.outputs.keys() - preparation.wanted
    }
    try:
        check_outputs(
            name,
            preparation.options,
            infos,
            store.query_path_info,
            store.store_dir,
            valid_outputs=valid,
        )
    except OutputCheckError as error:
        raise rejected_output(str(error)) from error
    _move_and_register(store, staged, keys, repair=preparation.repair)
    if preparation.hashes:
        store.realisations.register(
            sign_realisation(
                Realisation(
                    DrvOutput.of(preparation.hashes[item.output], item.output), item.info.path
                ),
                keys,
            )
            for item in staged
        )


def collect_and_install(
    store: LocalStore,
    workspace: Workspace,
    rules: OutputRules,
    preparation: Preparation,
    keys: Sequence[SecretKey],
    progress: Progress,
) -> list[StagedOutput]:
    """Collect outputs and install them, in one visit to the store's thread: for small ones.

    Raises ``BuildFailureError`` and ``StoppedError``.
    """
    staged = collect_outputs(progress, workspace, rules)
    install(store, staged, preparation, keys)
    return staged


def check_fixed(
    store: LocalStore,
    item: StagedOutput,
    preparation: Preparation,
    keys: Sequence[SecretKey],
    *,
    keep_wrong: bool,
) -> None:
    """The hash that was promised, and no references (rows O8, O9).

    Raises ``BuildFailureError``; with ``keep_wrong``, an output with another hash is kept under
    its true path.
    """
    specification = preparation.derivation.outputs[item.output]
    if not isinstance(specification, FixedOutput):
        return
    name = store.store_dir.render(preparation.drv_path)
    try:
        check_fixed_output(name, item.info, specification.hash, store.store_dir)
    except UnaddressableOutputError as error:
        raise unable(str(error), FailureCause.OUTPUT) from error
    except FixedOutputError as error:
        if keep_wrong:
            _move_and_register(store, [item], keys)
        raise BuildFailureError(
            BuildStatus.HASH_MISMATCH, str(error), FailureCause.OUTPUT
        ) from error


def _move_and_register(
    store: LocalStore,
    staged: Sequence[StagedOutput],
    keys: Sequence[SecretKey],
    *,
    repair: bool = False,
) -> None:
    infos: list[PathInfo] = []
    moved: list[StorePath] = []
    for item in staged:
        store.add_temp_root(item.info.path)
        is_valid = store.is_valid(item.info.path)
        if is_valid and repair:
            store.replace_in_store(item.directory_fd, item.name, item.info.path)
        elif is_valid:
            # Made by somebody else: the same contents, as the path says. Now it was built here.
            known = store.query_path_info(item.info.path)
            if not known.ultimate:
                signatures = (*known.signatures, *sign(known, store.store_dir, keys))
                infos.append(replace(known, ultimate=True, signatures=signatures))
            continue
        else:
            store.delete_invalid(item.info.path)
            store.move_into_store(item.directory_fd, item.name, item.info.path)
            moved.append(item.info.path)
        signatures = sign(item.info, store.store_dir, keys) if keys else ()
        infos.append(replace(item.info, signatures=signatures))
    try:
        if infos:
            store.register(infos)
    except ExecutorError:
        # As an output that is a derivation, and a bad one.
        for path in moved:
            store.delete_invalid(path)
        raise
