"""Hash modulo, output paths and placeholders.

The path of an input-addressed output follows from a hash of the derivation in which each input
derivation is replaced by a hash of its own, and fixed outputs by what they promise: how something
is fetched doesn't change what depends on it. Source: ``hashDerivationModulo`` of Nix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from executor.derivation import (
    DeferredOutput,
    Derivation,
    DerivationKind,
    FixedOutput,
    InputAddressed,
    to_term,
)
from executor.errors import FormatError
from executor.formats import base32
from executor.formats.aterm import unparse_term
from executor.formats.hashes import Hash, HashAlgorithm, hash_bytes
from executor.formats.store_path import StoreDir, StorePath, make_output_path

DerivationLookup = Callable[[StorePath], Derivation]


@dataclass(frozen=True, slots=True)
class _Modulo:
    """What stands for one derivation inside another: a hash for each output.

    ``deferred``: it depends on something whose path is only known after a build, itself included.
    """

    hashes: Mapping[str, Hash]
    deferred: bool


class ModuloHasher:
    """Computes hashes modulo; remembers them by derivation path, so share one where you can."""

    def __init__(self, lookup: DerivationLookup, store_dir: StoreDir) -> None:
        self._lookup = lookup
        self.store_dir = store_dir
        self._known: dict[StorePath, _Modulo] = {}

    def knows(self, path: StorePath) -> bool:
        """Whether the hash of a derivation is remembered, perhaps those of users."""
        return path in self._known

    def masked(self, derivation: Derivation) -> Hash | None:
        """Hash of a derivation with its own output paths left out: the root of those paths.

        ``None`` for a derivation whose paths can't be known before its inputs are built.
        """
        self._learn(derivation.input_drvs)
        digest, deferred = self._hash(derivation, mask=True)
        return None if deferred else digest

    def output_hashes(self, derivation: Derivation) -> dict[str, Hash]:
        """The hash that names the derivation in the ids of realisations, for each output."""
        if derivation.kind is not DerivationKind.FIXED:
            self._learn(derivation.input_drvs)
        return dict(self._modulo(derivation, mask=True).hashes)

    def _learn(self, roots: Iterable[StorePath]) -> None:
        """Fill in what is below ``roots``, inputs first, without recursion."""
        pending = list(roots)
        begun: set[StorePath] = set()
        while pending:
            path = pending[-1]
            if path in self._known:
                pending.pop()
                continue
            derivation = self._lookup(path)
            missing = (
                []
                if derivation.kind is DerivationKind.FIXED
                else [need for need in derivation.input_drvs if need not in self._known]
            )
            if missing:
                # Below itself: no program can make such files, but their contents may be forged.
                if path in begun:
                    raise FormatError(f"derivation '{path}' depends on itself")
                begun.add(path)
                pending.extend(missing)
                continue
            self._known[path] = self._modulo(derivation)
            pending.pop()

    def _modulo(self, derivation: Derivation, *, mask: bool = False) -> _Modulo:
        fixed = derivation.outputs.get("out")
        if isinstance(fixed, FixedOutput):
            path = self.store_dir.render(fixed.path(self.store_dir, derivation.name, "out"))
            promise = f"fixed:out:{fixed.method.prefix}{fixed.hash.prefixed16}:{path}"
            hashes = {"out": hash_bytes(HashAlgorithm.SHA256, promise.encode())}
            return _Modulo(hashes, deferred=False)
        whole, deferred = self._hash(derivation, mask=mask)
        if derivation.kind in (DerivationKind.FLOATING, DerivationKind.IMPURE):
            deferred = True
        return _Modulo(dict.fromkeys(derivation.outputs, whole), deferred)

    def _hash(self, derivation: Derivation, *, mask: bool) -> tuple[Hash, bool]:
        """The hash, and whether an input is deferred."""
        inputs: dict[str, set[str]] = {}
        deferred = False
        for path, names in derivation.input_drvs.items():
            known = self._known[path]
            deferred = deferred or known.deferred
            for name in names:
                part = known.hashes.get(name)
                if part is None:
                    raise FormatError(f"'{path}' has no output '{name}', which is referred to")
                # Two inputs with the same hash are one: their outputs are joined.
                inputs.setdefault(part.base16, set()).add(name)
        term = to_term(_mask(derivation) if mask else derivation, self.store_dir)
        input_drvs = tuple(
            (text.encode(), tuple(name.encode() for name in sorted(names)))
            for text, names in sorted(inputs.items())
        )
        text = unparse_term(replace(term, input_drvs=input_drvs, dynamic=()))
        return hash_bytes(HashAlgorithm.SHA256, text), deferred


def _mask(derivation: Derivation) -> Derivation:
    """The derivation as if its output paths were not known: empty, in the environment too."""
    names = {name.encode() for name in derivation.outputs}
    return replace(
        derivation,
        outputs={
            name: DeferredOutput() if isinstance(output, InputAddressed) else output
            for name, output in derivation.outputs.items()
        },
        env={key: b"" if key in names else value for key, value in derivation.env.items()},
    )


def output_paths(derivation: Derivation, hasher: ModuloHasher) -> dict[str, StorePath | None]:
    """The path of each output as it has to be; ``None`` where only a build can tell."""
    store_dir = hasher.store_dir
    kind = derivation.kind
    if kind is DerivationKind.FIXED:
        return {
            name: output.path(store_dir, derivation.name, name)
            for name, output in derivation.outputs.items()
            if isinstance(output, FixedOutput)
        }
    if kind in (DerivationKind.FLOATING, DerivationKind.IMPURE):
        return dict.fromkeys(derivation.outputs)
    root = hasher.masked(derivation)
    if root is None:
        return dict.fromkeys(derivation.outputs)
    return {
        name: make_output_path(store_dir, name, root, derivation.name)
        for name in derivation.outputs
    }


def check_output_paths(derivation: Derivation, drv_path: StorePath, hasher: ModuloHasher) -> None:
    """Refuse a derivation that states other output paths than it has (rows D6, 138).

    Raises ``FormatError`` naming the derivation and the output.
    """
    store_dir = hasher.store_dir
    name = store_dir.render(drv_path)
    if drv_path.name != f"{derivation.name}.drv":
        raise FormatError(f"derivation '{name}' should be called '{derivation.name}.drv'")
    if derivation.kind in (DerivationKind.FLOATING, DerivationKind.IMPURE):
        return
    for output, path in output_paths(derivation, hasher).items():
        stated = derivation.outputs[output]
        if path is None:
            if isinstance(stated, InputAddressed):
                raise FormatError(
                    f"derivation '{name}' states a path for output '{output}', which can only be "
                    "known after its inputs are built"
                )
            continue
        expected = store_dir.render(path)
        if isinstance(stated, InputAddressed) and stated.path != path:
            raise FormatError(
                f"derivation '{name}' has incorrect output '{store_dir.render(stated.path)}', "
                f"should be '{expected}'"
            )
        _check_environment(derivation, name, output, expected)


def _check_environment(derivation: Derivation, name: str, output: str, expected: str) -> None:
    value = derivation.env.get(output.encode())
    if value != expected.encode():
        actual = "missing" if value is None else f"'{value.decode(errors='replace')}'"
        raise FormatError(
            f"derivation '{name}' has an incorrect environment variable '{output}': it should be "
            f"'{expected}' but is {actual}"
        )


def placeholder(output_name: str) -> str:
    """What stands for an output's own path until the build (row D8)."""
    digest = hash_bytes(HashAlgorithm.SHA256, f"nix-output:{output_name}".encode())
    return "/" + base32.encode(digest.digest)


def fill_outputs(derivation: Derivation, hasher: ModuloHasher) -> Derivation:
    """Compute the output paths of a hand-written derivation and put them where they belong.

    Deferred outputs become input-addressed ones where their paths can be known by now, and the
    variables named after the outputs get their paths; those of floating outputs that are empty
    get what stands for the paths until they are built.
    """
    # That the variables are there is part of the hash; what they hold is not.
    env = {**dict.fromkeys((name.encode() for name in derivation.outputs), b""), **derivation.env}
    derivation = replace(derivation, env=env)
    paths = output_paths(derivation, hasher)
    outputs = dict(derivation.outputs)
    for name, path in paths.items():
        if path is None:
            if not isinstance(outputs[name], DeferredOutput) and not env[name.encode()]:
                env[name.encode()] = placeholder(name).encode()
            continue
        if isinstance(outputs[name], DeferredOutput | InputAddressed):
            outputs[name] = InputAddressed(path)
        env[name.encode()] = hasher.store_dir.render(path).encode()
    return replace(derivation, outputs=outputs, env=env)
