"""From what a builder left behind to store objects that may be registered.

Runs in a worker thread, after every process of the builder is dead. The outputs lie in the
scratch store, below a directory that only root can enter. Each is checked for its owner, made
canonical, hashed and scanned in one pass; fixed outputs, whose builders may have given away a
descriptor over the network, are copied to fresh inodes first (invariant 4 of the design).

No database is used here: what needs it (closure checks, registration) comes after.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter

from executor.build.failure import rejected_output, unable
from executor.build.result import FailureCause
from executor.build.staged import StagedOutput
from executor.build.users import BuildUser
from executor.build.workspace import Workspace
from executor.derivation import (
    Derivation,
    DerivationOutput,
    FixedOutput,
    FloatingOutput,
    ImpureOutput,
)
from executor.formats.content_address import ContentAddress, IngestionMethod
from executor.formats.hashes import Hash, HashAlgorithm
from executor.formats.store_path import (
    StoreDir,
    StorePath,
    make_fixed_output_path,
    output_path_name,
)
from executor.store.canonicalise import Canonicaliser, TreeDescription, canonicalise_and_describe
from executor.store.errors import UnacceptableTreeError
from executor.store.path_info import PathInfo
from executor.store.progress import Progress
from executor.store.tree import copy_tree, sync_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from executor.build.floating import Settler

# Bytes that are hashed and scanned in less time than it takes to ask another thread for it.
_SMALL = 1 << 16
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRules:
    """What the outputs of one build are checked against.

    ``outputs`` maps every output to the path that the builder was given; ``wanted`` are those to
    register. ``referenceable``
    are the paths that may occur in them; ``discard`` the outputs whose references don't count.
    ``isolate`` demands fresh inodes, ``sync`` that everything is on disk before registration.
    """

    drv_path: StorePath
    derivation: Derivation
    outputs: Mapping[str, StorePath]
    wanted: frozenset[str]
    referenceable: frozenset[StorePath]
    discard: frozenset[str]
    user: BuildUser
    ignored_acls: frozenset[str]
    isolate: bool
    sync: bool
    store_dir: StoreDir

    def describe(self, output: str) -> str:
        """How messages name an output."""
        return f"output '{output}' of '{self.store_dir.render(self.drv_path)}'"


def collect_outputs(
    progress: Progress, workspace: Workspace, rules: OutputRules
) -> list[StagedOutput]:
    """Check and describe the wanted outputs, in an order that puts references first.

    Raises ``BuildFailureError`` with the verdict that Nix gives, and ``StoppedError`` when
    ``progress`` says so.
    """
    policy = Canonicaliser(allowed_uids=rules.user.uids, ignored_acls=rules.ignored_acls)
    for output in sorted(rules.wanted):
        _check_top(workspace.scratch_fd, rules, output)
    staged = []
    for output in sorted(rules.wanted):
        progress.next_tree()
        staged.append(_stage(workspace, rules, policy, output, progress))
    return _settled(workspace, rules, _in_registration_order(staged, rules), progress)


def are_small(scratch_fd: int, paths: Iterable[StorePath]) -> bool:
    """Whether looking at these outputs takes no time: single files, and none of them large."""
    try:
        found = [
            os.stat(path.base_name, dir_fd=scratch_fd, follow_symlinks=False) for path in paths
        ]
    except OSError:
        return False  # which is told by whoever collects them
    return all(stat.S_ISREG(each.st_mode) and each.st_size <= _SMALL for each in found)


def _settled(
    workspace: Workspace, rules: OutputRules, staged: list[StagedOutput], progress: Progress
) -> list[StagedOutput]:
    """Outputs whose contents decide about their paths get these now."""
    # Sizes are known by now; that of another output must not count in the place of the last one's.
    again = progress.without_size()
    settler: Settler | None = None
    settled = []
    for item in staged:
        address = _found_by_contents(rules.derivation.outputs[item.output], item)
        if address is not None:
            from executor.build.floating import Settler

            settler = settler or Settler(
                rules.store_dir, rules.derivation.name, workspace.final_fd, again
            )
            item = settler.settle(item, address)
        if rules.sync:
            sync_tree(item.directory_fd, item.name, again)
        settled.append(item)
    return settled


def _found_by_contents(
    output: DerivationOutput, item: StagedOutput
) -> FloatingOutput | ImpureOutput | None:
    """What decides about the path of an output, if that isn't known before its contents are."""
    if isinstance(output, FixedOutput) and item.info.content_address is None:
        # It refers to itself. That is not what was promised, but it is told as what it is.
        return FloatingOutput(output.method, output.hash.algorithm)
    return output if isinstance(output, FloatingOutput | ImpureOutput) else None


def _check_top(scratch_fd: int, rules: OutputRules, output: str) -> None:
    """The output is there, belongs to the builder, and nobody else could write it (O1, O2)."""
    name = rules.outputs[output].base_name
    try:
        status = os.stat(name, dir_fd=scratch_fd, follow_symlinks=False)
    except FileNotFoundError:
        raise rejected_output(
            f"builder for '{rules.store_dir.render(rules.drv_path)}' failed to produce output path "
            f"for output '{output}' at '{rules.store_dir.render(rules.outputs[output])}'"
        ) from None
    writable = not stat.S_ISLNK(status.st_mode) and status.st_mode & _WRITABLE_BY_OTHERS
    if writable or status.st_uid != rules.user.uid:
        raise rejected_output(
            "suspicious ownership or permission on "
            f"'{rules.store_dir.render(rules.outputs[output])}' for {rules.describe(output)}; "
            "rejecting this build output"
        )
    specification = rules.derivation.outputs[output]
    method = getattr(specification, "method", IngestionMethod.NAR)
    if method is not IngestionMethod.NAR:
        _check_flat(status, rules, output)


def _check_flat(status: os.stat_result, rules: OutputRules, output: str) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_mode & stat.S_IXUSR:
        raise rejected_output(
            f"{rules.describe(output)} should be a non-executable regular file, since recursive "
            "hashing is not enabled (outputHashMode is flat)"
        )


def _stage(
    workspace: Workspace,
    rules: OutputRules,
    policy: Canonicaliser,
    output: str,
    progress: Progress,
) -> StagedOutput:
    name = os.fsencode(rules.outputs[output].base_name)
    by_digest = {path.digest: path for path in rules.referenceable}
    scratch = {path.digest for path in rules.outputs.values()}
    candidates = tuple(scratch if output in rules.discard else by_digest)
    directory_fd = workspace.scratch_fd
    try:
        description = canonicalise_and_describe(
            directory_fd, name, canonicaliser=policy, candidates=candidates, progress=progress
        )
        if rules.isolate:
            # The first pass made sure that nothing foreign is copied; the second one describes
            # inodes that no process outside can have open.
            copy_tree(directory_fd, name, workspace.final_fd, name, progress=progress)
            directory_fd = workspace.final_fd
            description = canonicalise_and_describe(
                directory_fd, name, candidates=candidates, progress=progress
            )
    except UnacceptableTreeError as error:
        text = f"{rules.describe(output)} can't enter the store: {error}"
        raise unable(text, FailureCause.OUTPUT) from error
    discarded = output in rules.discard
    references = frozenset(by_digest[digest] for digest in description.references if not discarded)
    info = PathInfo(
        path=rules.outputs[output],
        nar_hash=description.nar_hash,
        nar_size=description.nar_size,
        references=references,
        deriver=rules.drv_path,
        ultimate=True,
    )
    specification = rules.derivation.outputs[output]
    in_itself = info.path in references
    if isinstance(specification, FixedOutput) and not (
        in_itself and _takes_references(specification)
    ):
        actual = _content_hash(directory_fd, name, specification, description, progress)
        info = _content_addressed(specification, info, actual, rules)
    return StagedOutput(
        output=output,
        directory_fd=directory_fd,
        name=name,
        info=info,
        occurring=description.references & scratch,
    )


def _content_addressed(
    specification: FixedOutput, info: PathInfo, actual: Hash, rules: OutputRules
) -> PathInfo:
    """Give a fixed output the path that its true contents have."""
    address = ContentAddress(specification.method, actual)
    true_path = make_fixed_output_path(
        rules.store_dir,
        output_path_name(rules.derivation.name, "out"),
        specification.method,
        actual,
        info.references - {info.path} if _takes_references(specification) else (),
    )
    return replace(info, path=true_path, content_address=address.render())


def _takes_references(specification: FixedOutput) -> bool:
    """Whether the path of such contents can tell what they refer to."""
    if specification.hash.algorithm is not HashAlgorithm.SHA256:
        return False
    return specification.method in (IngestionMethod.NAR, IngestionMethod.TEXT)


def _content_hash(
    directory_fd: int,
    name: bytes,
    specification: FixedOutput,
    description: TreeDescription,
    progress: Progress,
) -> Hash:
    algorithm = specification.hash.algorithm
    recursive = specification.method is IngestionMethod.NAR
    if recursive and algorithm is HashAlgorithm.SHA256:
        return description.nar_hash
    method = specification.method
    from executor.store.contents import hash_contents

    return hash_contents(directory_fd, name, method, algorithm, progress=progress)


def _in_registration_order(staged: list[StagedOutput], rules: OutputRules) -> list[StagedOutput]:
    """Outputs before those that refer to them. Raises for a cycle (row O5)."""
    by_path = {item.info.path: item for item in staged}
    graph = {
        item.output: sorted(
            by_path[path].output
            for path in (item.info.references - {item.info.path}) & by_path.keys()
        )
        for item in staged
    }
    by_output = {item.output: item for item in staged}
    try:
        return [by_output[output] for output in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        cycle: list[str] = error.args[1]
        raise rejected_output(
            f"cycle detected in build of '{rules.store_dir.render(rules.drv_path)}' in the "
            f"references of output '{cycle[0]}' from output '{cycle[1]}'"
        ) from None
