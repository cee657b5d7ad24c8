"""What substituters have, for those who ask."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from executor.build.context import BuildContext
from executor.build.substitution import Fetched
from executor.caches.found import Found
from executor.formats.store_path import StorePath
from executor.protocols.call import Call
from executor.protocols.errors import OperationError
from executor.protocols.loop_work import in_batches
from executor.protocols.session import Session


def offers_of(call: Call, wanted: Mapping[StorePath, str | None]) -> dict[StorePath, Found]:
    """The best offers of paths, with their content addresses where the client knows them."""
    if not has_substituters(call.session):
        return {}

    async def ask(context: BuildContext) -> dict[StorePath, Found]:
        substitution = context.substitution
        if substitution is None:
            return {}
        offers = await in_batches(lambda item: substitution.offer(*item), wanted.items())
        return {
            path: offer for path, offer in zip(wanted, offers, strict=True) if offer is not None
        }

    return call.session.run(ask)


def has_substituters(session: Session) -> bool:
    """Whether there is anybody to ask."""
    settings = session.settings
    return bool(settings.substitute and settings.substituters)


def substitute(session: Session, paths: Collection[StorePath]) -> None:
    """Fetch what is missing of some paths; what can't be had stays away without a word."""
    missing = sorted(set(paths) - session.store.query_valid(paths))
    if not (missing and has_substituters(session)):
        return

    async def fetch(context: BuildContext) -> None:
        if context.substitution is not None:
            await in_batches(context.substitution.fetch, missing)

    session.run(fetch)


def ensure(call: Call, path: StorePath) -> None:
    """Make one path valid. Raises ``OperationError``."""
    call.store.add_temp_root(path)
    if call.store.is_valid(path):
        return

    async def fetch(context: BuildContext) -> Fetched:
        if context.substitution is None:
            return Fetched.ABSENT
        return await context.substitution.fetch(path)

    if call.session.run(fetch) is not Fetched.VALID:
        name = call.store.store_dir.render(path)
        raise OperationError(f"path '{name}' does not exist and cannot be created")
