"""What a build needs to know from the store, looked up under the locks of its outputs.

Runs in the store's thread: one visit collects everything, so that the event loop is asked once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from executor.build.environment import BuildEnvironment, EnvironmentSettings, build_environment
from executor.build.failure import rejected_input, unusable
from executor.build.messages import (
    impure_host_dep_refusal,
    local_build_refusal,
    no_chroot_refusal,
)
from executor.build.options import DerivationOptions, InvalidAttributeError, NotAnInputError
from executor.build.plan import Node, static_outputs
from executor.config import Settings
from executor.derivation import Derivation
from executor.errors import FormatError
from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from executor.store.tree import delete_tree

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """Everything about one build that depends on the store.

    ``wanted`` are the outputs to register (those that aren't valid); none means that there is
    nothing to do. ``inputs`` is the closure of what the derivation refers to, ``sandbox_closure``
    what sandbox paths in the store add to it. ``check``: compare them with what is valid.
    """

    drv_path: StorePath
    derivation: Derivation
    options: DerivationOptions
    outputs: Mapping[str, StorePath]
    wanted: frozenset[str]
    inputs: frozenset[StorePath]
    sandbox_closure: frozenset[StorePath]
    environment: BuildEnvironment
    check: bool = False


def missing_outputs(store: LocalStore, node: Node) -> frozenset[str]:
    """Outputs of ``node`` to build: none if all that is wanted is there by now.

    To check are those that are valid, which the plan has made sure of.
    """
    valid = store.query_valid(node.outputs.values())
    if node.check:
        return frozenset(name for name in node.wanted if node.outputs[name] in valid)
    missing = frozenset(name for name, path in node.outputs.items() if path not in valid)
    return missing if missing & node.wanted else frozenset()


def prepare(
    store: LocalStore, node: Node, settings: Settings, environ: Mapping[bytes, bytes]
) -> Preparation | None:
    """Look everything up; ``None`` if the wanted outputs are valid by now.

    Invalid leftovers at the output paths are deleted. Raises ``BuildFailureError``.
    """
    derivation = node.derivation
    if derivation is None or not (wanted := missing_outputs(store, node)):
        return None
    name = store.store_dir.render(node.drv_path)
    try:
        options = DerivationOptions.from_derivation(derivation, store.store_dir)
        refuse_unbuildable(name, derivation, options, settings)
        inputs = _input_closure(store, name, derivation)
        environment = build_environment(
            derivation,
            options,
            _environment_settings(store, settings, environ),
            outputs=node.outputs,
            inputs=inputs,
            lookup=store,
        )
    except NotAnInputError as error:
        raise rejected_input(f"can't build '{name}': {error}") from error
    except (InvalidAttributeError, FormatError) as error:
        raise unusable(f"can't build '{name}': {error}") from error
    for output in () if node.check else wanted:
        _delete_leftover(store, node.outputs[output])
    return Preparation(
        drv_path=node.drv_path,
        derivation=derivation,
        options=options,
        outputs=node.outputs,
        wanted=wanted,
        inputs=frozenset(inputs),
        sandbox_closure=frozenset(_sandbox_closure(store, settings)),
        environment=environment,
        check=node.check,
    )


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
        system_features=settings.system_features,
        is_builtin=derivation.is_builtin,
        max_jobs=settings.max_jobs,
    )
    if refusal is not None:
        raise rejected_input(refusal)
    if options.no_chroot:
        raise unusable(no_chroot_refusal(name))
    refusal = impure_host_dep_refusal(
        name, options.impure_host_deps, settings.allowed_impure_host_deps
    )
    if refusal is not None:
        raise unusable(refusal)
    if options.wants_uid_range:
        raise unusable(
            f"'{name}' wants the feature 'uid-range', which this version doesn't support"
        )


def _input_closure(store: LocalStore, name: str, derivation: Derivation) -> set[StorePath]:
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
    invalid = roots - store.query_valid(roots)
    if invalid:
        raise unusable(f"input '{store.store_dir.render(min(invalid))}' of '{name}' is not valid")
    return store.closure(roots)


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


def _sandbox_closure(store: LocalStore, settings: Settings) -> Iterable[StorePath]:
    """Sandbox paths whose source is in the store bring their closure (row S10)."""
    roots: set[StorePath] = set()
    for path in settings.sandbox_paths:
        if path.source.startswith(store.store_dir.path + "/"):
            roots.add(store.store_dir.split(path.source)[0])
    return store.closure(roots & store.query_valid(roots)) if roots else ()


def _delete_leftover(store: LocalStore, path: StorePath) -> None:
    """Remove what a killed build or an attacker left at an output's path (row 180)."""
    descriptor = os.open(store.location.real_store_dir, _DIRECTORY)
    try:
        os.lstat(path.base_name, dir_fd=descriptor)
        delete_tree(descriptor, os.fsencode(path.base_name))
    except FileNotFoundError:
        return
    finally:
        os.close(descriptor)
