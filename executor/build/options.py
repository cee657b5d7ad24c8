"""What a derivation asks of its builder through magic attributes, parsed once and typed.

Legacy derivations carry these in their environment as strings; derivations with structured
attributes carry them as JSON under ``__json``. The rules, defaults, warnings and error texts are
those of Nix 2.34.8 (``derivation-options.cc``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from executor.derivation import Derivation
from executor.errors import ExecutorError
from executor.formats.nlohmann import JsonValue
from executor.formats.store_path import StoreDir, StorePath


class RejectedInputError(ExecutorError):
    """The derivation asks for something that can't be obeyed: Nix's ``InputRejected``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputChecks:
    """Limits on one output. ``None`` means no limit; an empty set of allowed ones forbids all.

    Members of the sets are store paths or names of outputs of the same derivation. Sizes are in
    bytes of NAR. ``ignore_self_references`` holds for the two sets of requisites only.
    """

    ignore_self_references: bool = False
    max_size: int | None = None
    max_closure_size: int | None = None
    allowed_references: frozenset[StorePath | str] | None = None
    disallowed_references: frozenset[StorePath | str] = frozenset()
    allowed_requisites: frozenset[StorePath | str] | None = None
    disallowed_requisites: frozenset[StorePath | str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivationOptions:
    """The magic attributes of one derivation.

    ``structured`` is the object of ``__json`` (``None`` for a legacy derivation).
    ``output_checks`` maps output names to checks; ``None`` as a key holds for every output (legacy
    form). ``required_system_features`` includes the implied ``ca-derivations``. ``warnings`` are
    sentences for the user, without a "warning:" in front.
    """

    structured: Mapping[str, JsonValue] | None = None
    output_checks: Mapping[str | None, OutputChecks] = field(default_factory=dict)
    unsafe_discard_references: Mapping[str, bool] = field(default_factory=dict)
    pass_as_file: frozenset[bytes] = frozenset()
    export_references_graph: Mapping[str, frozenset[StorePath]] = field(default_factory=dict)
    no_chroot: bool = False
    impure_host_deps: frozenset[str] = frozenset()
    impure_env_vars: frozenset[bytes] = frozenset()
    required_system_features: frozenset[str] = frozenset()
    prefer_local_build: bool = False
    allow_substitutes: bool = True
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_derivation(cls, derivation: Derivation, store_dir: StoreDir) -> DerivationOptions:
        """Parse the attributes of a derivation whose inputs are all resolved.

        Raises ``RejectedInputError`` where Nix refuses: ill-typed structured attributes, JSON that
        can't be parsed, an odd or illegal ``exportReferencesGraph``.
        """
        raise NotImplementedError

    def checks_for(self, output_name: str) -> OutputChecks | None:
        """The checks that one output must pass."""
        return self.output_checks.get(None) or self.output_checks.get(output_name)

    def discards_references(self, output_name: str) -> bool:
        """Whether references of this output are neither looked for nor recorded."""
        return self.unsafe_discard_references.get(output_name, False)

    @property
    def wants_uid_range(self) -> bool:
        return "uid-range" in self.required_system_features
