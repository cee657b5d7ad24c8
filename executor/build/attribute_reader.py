"""Typed access to the attributes of a derivation, structured or legacy, with Nix's complaints.

A structured derivation is read from its JSON only, a legacy one from its environment only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from executor.errors import ExecutorError
from executor.formats.nlohmann import JsonValue, dump_json

_SEPARATORS = re.compile(rb"[ \t\n\r]+")
_UINT64 = 2**64
_SHOWN = 500


class InvalidAttributeError(ExecutorError):
    """An attribute of the derivation makes no sense: Nix's ``MiscFailure``.

    The message is printable: bytes that aren't UTF-8 are shown as replacement characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class NotAnInputError(ExecutorError):
    """The derivation wants to know of a path that it doesn't depend on: ``InputRejected``."""


class AttributeReader:
    """Attributes by name. Methods raise ``InvalidAttributeError`` for a value of another type.

    ``where`` is put in front of that complaint; by default it names the attribute. Legacy values
    become text by UTF-8 with surrogate escapes, so that no byte is lost.
    """

    def __init__(
        self, attributes: Mapping[str, JsonValue] | None, env: Mapping[bytes, bytes]
    ) -> None:
        self._attributes = attributes
        self.env = env

    @property
    def is_structured(self) -> bool:
        return self._attributes is not None

    def __contains__(self, name: str) -> bool:
        if self._attributes is None:
            return name.encode() in self.env
        return name in self._attributes

    def names(self) -> Iterable[str]:
        """Names of the structured attributes."""
        return () if self._attributes is None else self._attributes.keys()

    def value(self, name: str) -> JsonValue:
        """A structured attribute as it is; ``KeyError`` if there is none."""
        if self._attributes is None:
            raise KeyError(name)
        return self._attributes[name]

    def child(self, value: JsonValue, where: str = "") -> AttributeReader:
        """A reader for an object within the structured attributes."""
        if not isinstance(value, dict):
            raise _unexpected("object", value, where)
        return AttributeReader(value, {})

    def object(self, name: str) -> Mapping[str, JsonValue]:
        """A structured attribute that must be an object."""
        value = self.value(name)
        if not isinstance(value, dict):
            raise _unexpected("object", value, "")
        return value

    def text(self, name: str) -> str | None:
        """A string, or ``None`` if the attribute isn't there."""
        if name not in self:
            return None
        if self._attributes is None:
            return self.env[name.encode()].decode("utf-8", "surrogateescape")
        value = self._attributes[name]
        if not isinstance(value, str):
            raise _unexpected("string", value, _named(name))
        return value

    def boolean(self, name: str, *, default: bool, where: str | None = None) -> bool:
        """A truth value; in a legacy derivation only "1" is true."""
        if name not in self:
            return default
        if self._attributes is None:
            return self.env[name.encode()] == b"1"
        value = self._attributes[name]
        if not isinstance(value, bool):
            raise _unexpected("boolean", value, _named(name) if where is None else where)
        return value

    def strings(self, name: str, where: str | None = None) -> frozenset[str] | None:
        """A list of strings; in a legacy derivation, words between white space."""
        if name not in self:
            return None
        if self._attributes is None:
            return frozenset(self.split(self.env[name.encode()]))
        value = self._attributes[name]
        where = _named(name) if where is None else where
        if not isinstance(value, list):
            raise _unexpected("array", value, where)
        found: set[str] = set()
        for item in value:
            if not isinstance(item, str):
                raise _unexpected("string", item, where)
            found.add(item)
        return frozenset(found)

    def tokens(self, name: str) -> frozenset[bytes]:
        """Words of a legacy attribute, as bytes."""
        words = _SEPARATORS.split(self.env.get(name.encode(), b""))
        return frozenset(word for word in words if word)

    @staticmethod
    def split(value: bytes) -> list[str]:
        """Words between spaces, tabs and line ends, in order."""
        words = _SEPARATORS.split(value)
        return [word.decode("utf-8", "surrogateescape") for word in words if word]


def printable(text: str) -> str:
    """Text without the surrogates that stand for bytes which aren't UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def unsigned_value(value: JsonValue) -> int:
    """A number as a 64-bit unsigned integer: negative ones wrap, fractions are cut off."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidAttributeError(
            f"[json.exception.type_error.302] type must be number, but is {_type_name(value)}"
        )
    whole = int(value)
    return whole % _UINT64 if whole < _UINT64 else 0


def _named(name: str) -> str:
    return f'while parsing attribute "{name}"'


def _unexpected(expected: str, value: JsonValue, where: str) -> InvalidAttributeError:
    shown = dump_json(value).decode()
    if len(shown) > _SHOWN:
        shown = shown[:_SHOWN] + "…"
    text = (
        f"Expected JSON value to be of type '{expected}' "
        f"but it is of type '{_type_name(value)}': {shown}"
    )
    return InvalidAttributeError(f"{where}: {text}" if where else text)


def _type_name(value: JsonValue) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"
