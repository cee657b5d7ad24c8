"""Where an engine finds who serves builders that build themselves, without importing it before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.config import Settings

if TYPE_CHECKING:
    from executor.build.engine import Engine
    from executor.build.nested import NestedService, Restriction


def serve_nested(engine: Engine, settings: Settings, restriction: Restriction) -> NestedService:
    """The service of one builder; most runs never have one."""
    from executor.protocols.restricted import NestedServer

    return NestedServer(engine, settings, restriction)
