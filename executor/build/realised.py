"""What inputs came to be: resolving a derivation with it, and recording it (rows D9, O12).

Runs in the store's thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from executor.build.failure import unable, unusable
from executor.build.plan import Look, Node, check_possible, examine
from executor.build.result import FailureCause
from executor.derivation import derivation_path
from executor.errors import FormatError
from executor.formats.realisation import DrvOutput, Realisation
from executor.formats.store_path import StorePath
from executor.resolution import InputPaths, resolve
from executor.store.local import LocalStore
from executor.store.signing import SecretKey, sign_realisation

_FEATURE = "ca-derivations"


def resolved_node(
    store: LocalStore,
    node: Node,
    inputs: InputPaths,
    look: Look,
) -> Node:
    """The resolved form of a derivation that needs it and whose inputs are realised.

    ``inputs`` are those that are known by now; ``look`` as for ``examine``. Raises
    ``BuildFailureError``.
    """
    derivation = node.derivation
    assert derivation is not None
    name = store.store_dir.render(node.drv_path)
    if not store.settings.ca_derivations:
        raise unusable(
            f"experimental Nix feature '{_FEATURE}' is disabled; add "
            f"'--extra-experimental-features {_FEATURE}' to enable it"
        )
    for drv_path, outputs in derivation.input_drvs.items():
        if missing := outputs - inputs.outputs[drv_path].keys():
            raise unable(
                f"'{name}' needs output '{min(missing)}' of '{store.store_dir.render(drv_path)}', "
                "which is not known",
                FailureCause.STORE,
            )
    try:
        resolved = resolve(derivation, inputs, store.modulo_hasher)
    except FormatError as error:
        raise unusable(f"can't resolve '{name}': {error}") from error
    drv_path = derivation_path(resolved, store.store_dir)
    store.add_temp_root(drv_path)
    found = examine(store, drv_path, resolved, node.wanted, look)
    result = replace(found, store_derivation=True)
    return check_possible(store, result) if node.check else result


def record_realisations(
    store: LocalStore, node: Node, outputs: Mapping[str, StorePath], keys: Sequence[SecretKey]
) -> None:
    """Remember what outputs of a derivation came to be, signed with our keys.

    What is remembered already only gets further signatures. Impure outputs are never remembered.
    """
    derivation = node.derivation
    if derivation is None or (derivation.has_network and not derivation.is_fixed_output):
        return
    hashes = store.modulo_hasher.output_hashes(derivation)
    found = [
        Realisation(DrvOutput.of(hashes[name], name), path)
        for name, path in sorted(outputs.items())
        if name in hashes
    ]
    unknown = [item for item in found if store.realisations.query(item.id) is None]
    if unknown:
        store.realisations.register(sign_realisation(item, keys) for item in unknown)
