"""Reading the attributes of a derivation from a builtin's environment."""

from collections.abc import Mapping

from executor.builtins.errors import BuiltinError, show


def attribute(environment: Mapping[bytes, bytes], name: bytes) -> bytes:
    """The value of `name`; raises BuiltinError, in Nix's words, when there is none."""
    value = environment.get(name)
    if value is None:
        raise BuiltinError(f"attribute '{show(name)}' missing")
    return value


def output_path(environment: Mapping[bytes, bytes]) -> bytes:
    """Where the output `out` is to be made; raises BuiltinError when there is no such output."""
    value = environment.get(b"out")
    if not value:
        raise BuiltinError("the builtin builder requires an 'out' output")
    return value
