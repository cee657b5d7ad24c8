"""What a build needs to know from the store, looked up under the locks of its outputs.

Runs in the store's thread: one visit collects everything, so that the event loop is asked once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from executor.build.environment import BuildEnvironment, EnvironmentSettings, build_environment
from executor.build.failure import rejected_input, unable, unusable
from executor.build.messages import (
    id_range_refusal,
    impure_host_dep_refusal,
    local_build_refusal,
    no_chroot_refusal,
)
from executor.build.options import DerivationOptions, InvalidAttributeError, NotAnInputError
from executor.build.plan import Node, known_outputs
from executor.config import Settings
from executor.derivation import Derivation, DerivationKind, FloatingOutput
from executor.errors import FormatError, InvalidPathError
from executor.formats import base32
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import Hash, HashAlgorithm
from executor.formats.store_path import StorePath, output_path_name
from executor.store.derivations import static_outputs
from executor.store.local import LocalStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Everything about one build that depends on the store.

    ``outputs`` maps each output to the path that the builder is given: the true one where it is
    known, else one that nothing else has. ``wanted`` are the outputs to register (those that
    aren't valid). ``inputs`` is the closure of what the derivation refers to, ``sandbox_closure``
    what sandbox paths in the store add to it. ``hashes`` name the outputs in realisations, where
    these are recorded. ``check``: compare the outputs with what is valid;
    ``repair``: put them in the place of valid ones with bad contents.
    """

    drv_path: StorePath
    derivation: Derivation
    options: DerivationOptions
    outputs: Mapping[str, StorePath]
    wanted: frozenset[str]
    inputs: frozenset[StorePath]
    sandbox_closure: frozenset[StorePath]
    environment: BuildEnvironment
    hashes: Mapping[str, Hash] = field(default_factory=dict)
    check: bool = False
    repair: bool = False


@dataclass(frozen=True, slots=True)
class Present:
    """Nothing is left to do: the outputs that are known, by name."""

    outputs: Mapping[str, StorePath]


def missing_outputs(
    store: LocalStore, node: Node, known: Mapping[str, StorePath]
) -> frozenset[str]:
    """Outputs of ``node`` to build: none if all that is wanted is there by now.

    To check are those that are valid, which the plan has made sure of.
    """
    assert node.derivation is not None
    valid = store.query_valid(known.values())
    if node.repair:
        valid = {path for path in valid if store.has_good_contents(path)}
    missing = frozenset(name for name in node.derivation.outputs if known.get(name) not in valid)
    if node.check:
        return node.wanted - missing
    return missing if missing & node.wanted else frozenset()


def prepare(
    store: LocalStore, node: Node, settings: Settings, environ: Mapping[bytes, bytes]
) -> Preparation | Present:
    """Look everything up; ``Present`` if the wanted outputs are valid by now.

    Invalid leftovers at the output paths are deleted. Raises ``BuildFailureError``.
    """
    derivation = node.derivation
    assert derivation is not None
    known = known_outputs(store, derivation)
    wanted = missing_outputs(store, node, known)
    if not wanted:
        return Present(known)
    if node.store_derivation:
        store.write_derivation(derivation)
    outputs = _scratch_paths(store, node.drv_path, derivation, known)
    name = store.store_dir.render(node.drv_path)
    try:
        options = DerivationOptions.from_derivation(derivation, store.store_dir)
        refuse_unbuildable(name, derivation, options, settings)
        inputs = input_closure(store, name, derivation)
        environment = build_environment(
            derivation,
            options,
            _environment_settings(store, settings, environ),
            outputs=outputs,
            inputs=inputs,
            lookup=store,
        )
    except NotAnInputError as error:
        raise rejected_input(f"can't build '{name}': {error}") from error
    except (InvalidAttributeError, FormatError) as error:
        raise unusable(f"can't build '{name}': {error}") from error
    if not node.check:
        # Those that are known were asked for a moment ago, and aren't valid.
        unasked = [outputs[output] for output in wanted if node.repair or output not in known]
        present = store.query_valid(unasked)
        for output in wanted:
            # What is to be repaired stays until something better is there.
            if outputs[output] not in present:
                store.delete_invalid(outputs[output])
    recorded = store.realisations.enabled and derivation.kind is not DerivationKind.IMPURE
    return Preparation(
        drv_path=node.drv_path,
        derivation=derivation,
        options=options,
        outputs=outputs,
        wanted=wanted,
        inputs=frozenset(inputs),
        sandbox_closure=frozenset(sandbox_closure(store, settings)),
        environment=environment,
        hashes=store.modulo_hasher.output_hashes(derivation) if recorded else {},
        check=node.check,
        repair=node.repair,
    )


def _scratch_paths(
    store: LocalStore,
    drv_path: StorePath,
    derivation: Derivation,
    known: Mapping[str, StorePath],
) -> dict[str, StorePath]:
    """Where the builder puts its outputs: in the sandbox a known path is always free."""
    if derivation.kind is DerivationKind.IMPURE:
        return {
            output: StorePath(
                base32.encode(os.urandom(20)), output_path_name(derivation.name, output)
            )
            for output in derivation.outputs
        }
    if known.keys() >= derivation.outputs.keys():
        return {output: known[output] for output in derivation.outputs}
    from executor.build.floating import fallback_path

    return {
        output: known.get(output)
        or fallback_path(store.store_dir, drv_path, derivation.name, output)
        for output in derivation.outputs
    }


def refuse_unbuildable(
    name: str, derivation: Derivation, options: DerivationOptions, settings: Settings
) -> None:
    """Raise ``BuildFailureError`` for what this machine or version doesn't do."""
    refusal = local_build_refusal(
        name,
        required_system=derivation.platform,
        required_features=options.required_system_features,
        system=settings.system,
        extra_platforms=settings.extra_platforms,
        system_features=settings.available_features,
        is_builtin=derivation.is_builtin,
        max_jobs=settings.max_jobs,
    )
    if refusal is not None:
        raise rejected_input(refusal)
    for output in derivation.outputs.values():
        if (
            isinstance(output, FloatingOutput)
            and output.method is IngestionMethod.TEXT
            and output.algorithm is not HashAlgorithm.SHA256
        ):
            raise unusable(f"'{name}' has a text output that isn't hashed with SHA-256")
    if options.no_chroot:
        raise unusable(no_chroot_refusal(name))
    refusal = impure_host_dep_refusal(
        name, options.impure_host_deps, settings.allowed_impure_host_deps
    )
    if refusal is not None:
        raise unusable(refusal)
    refusal = id_range_refusal(
        options.wants_uid_range,
        allocates=settings.auto_allocate_uids,
        uses_cgroups=settings.use_cgroups,
        features=settings.experimental_features,
    )
    if refusal is not None:
        raise unable(refusal)


def input_closure(store: LocalStore, name: str, derivation: Derivation) -> set[StorePath]:
    """All that a builder of this derivation may see of the store; ``name`` is for messages.

    Raises ``BuildFailureError`` for an input that isn't valid or an output that doesn't exist.
    """
    roots = set(derivation.input_srcs)
    for input_drv, outputs in derivation.input_drvs.items():
        paths = static_outputs(store.read_derivation(input_drv), store.store_dir)
        for output in outputs:
            if output not in paths:
                raise unusable(
                    f"derivation '{name}' requires non-existent output '{output}' from input "
                    f"derivation '{store.store_dir.render(input_drv)}'"
                )
            roots.add(paths[output])
    try:
        return store.closure(roots)
    except InvalidPathError:
        invalid = min(roots - store.query_valid(roots))
        raise unusable(
            f"input '{store.store_dir.render(invalid)}' of '{name}' is not valid"
        ) from None


def _environment_settings(
    store: LocalStore, settings: Settings, environ: Mapping[bytes, bytes]
) -> EnvironmentSettings:
    return EnvironmentSettings(
        store_dir=store.store_dir,
        build_directory=os.fsencode(settings.sandbox_build_dir),
        cores=settings.cores or len(os.sched_getaffinity(0)),
        impure_environment=impure_environment(settings),
        host_environment=environ,
    )


def impure_environment(settings: Settings) -> dict[bytes, bytes]:
    """The setting ``impure-env`` as bytes."""
    return {os.fsencode(key): os.fsencode(value) for key, value in settings.impure_env.items()}


def sandbox_closure(store: LocalStore, settings: Settings) -> Iterable[StorePath]:
    """Sandbox paths whose source is in the store bring their closure (row S10)."""
    roots: set[StorePath] = set()
    for path in settings.sandbox_paths:
        if path.source.startswith(store.store_dir.path + "/"):
            roots.add(store.store_dir.split(path.source)[0])
    return store.closure(roots & store.query_valid(roots)) if roots else ()
