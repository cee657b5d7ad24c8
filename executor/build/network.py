"""The network of one build: which kind it gets, what of it the builder sees, and its life.

A build that may use the network (fixed outputs, impure derivations) gets what ``fod-network`` says:
a network of its own that is joined to the outside (``isolated``), the host's (``host``), or nothing
but loopback (``none``). Nothing falls back to another kind.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass

from executor.build.context import BuildContext, finish
from executor.build.users import BuildUser, UserLease
from executor.config import Settings
from executor.derivation import Derivation
from executor.network_rules import NetworkRule
from sandbox import (
    Bind,
    Contact,
    Contacts,
    File,
    NatNetwork,
    NatSpec,
    Network,
    NetworkUnavailableError,
    SandboxError,
    find_programs,
)
from sandbox import NetworkRule as SandboxRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from executor.build.resolver import Resolvers

_RESOLVER_CONFIGURATION = "/etc/resolv.conf"
_HOST_FILES = ("/etc/services", "/etc/hosts")
_CA_TARGET = b"/etc/ssl/certs/ca-certificates.crt"
_MAX_CONFIGURATION = 1 << 16
# Root's PATH lacks these where a service or a cron job starts the executor.
_SYSTEM_PROGRAMS = "/usr/sbin:/sbin"
_POLL = 0.05
_MAX_SHOWN = 20
_KINDS = {"isolated": Network.NAT, "host": Network.HOST, "none": Network.ISOLATED}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkView:
    """What of the network a builder finds in its root, and whom it may ask for names."""

    kind: Network
    files: tuple[File, ...] = ()
    binds: tuple[Bind, ...] = ()
    resolvers: Resolvers | None = None


def network_kind(derivation: Derivation, settings: Settings) -> Network:
    """Which network a derivation is built with."""
    return _KINDS[settings.fod_network] if derivation.has_network else Network.ISOLATED


def network_view(derivation: Derivation, settings: Settings) -> NetworkView:
    """Resolver configuration, services and certificates of a build with a network (row S6).

    The host's files are bound read-only; resolv.conf is made where the network isn't the host's.
    """
    kind = network_kind(derivation, settings)
    if kind is Network.ISOLATED:
        return NetworkView(kind=kind)
    names = [*_HOST_FILES, *([_RESOLVER_CONFIGURATION] if kind is Network.HOST else [])]
    binds = [_shown(path, os.fsencode(path)) for path in names if os.path.exists(path)]
    if settings.ssl_cert_file and os.path.exists(settings.ssl_cert_file):
        binds.append(_shown(settings.ssl_cert_file, _CA_TARGET))
    if kind is Network.HOST:
        return NetworkView(kind=kind, binds=tuple(binds))
    from executor.build.resolver import resolvers_for_build

    resolvers = resolvers_for_build(_host_configuration())
    file = File(path=os.fsencode(_RESOLVER_CONFIGURATION), content=resolvers.content)
    return NetworkView(kind=kind, files=(file,), binds=tuple(binds), resolvers=resolvers)


def _shown(path: str, target: bytes) -> Bind:
    return Bind(source=os.fsencode(os.path.realpath(path)), target=target, read_only=True)


def _host_configuration() -> str:
    """The host's resolv.conf, through whatever links; empty where there is none."""
    try:
        with open(_RESOLVER_CONFIGURATION, encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_CONFIGURATION)
    except OSError:
        return ""


class BuildNetwork:
    """The network of a build that runs, and after its end what it was used for."""

    def __init__(self, network: NatNetwork) -> None:
        self.network = network
        self.contacts = Contacts()


def build_network(
    context: BuildContext, view: NetworkView
) -> AbstractAsyncContextManager[BuildNetwork | None]:
    """A network of its own for a build that is to have one, for as long as the block lasts.

    Raises ``NetworkUnavailableError`` when it can't be had, and ``NetworkLostError`` at the end if
    its helper was lost.
    """
    return nullcontext() if view.resolvers is None else _running(context, view.resolvers)


@asynccontextmanager
async def _running(context: BuildContext, resolvers: Resolvers) -> AsyncIterator[BuildNetwork]:
    lease = await _lease(context)
    try:
        running = BuildNetwork(await _open(context, lease.user, resolvers))
        try:
            yield running
        except BaseException:
            with suppress(SandboxError):
                await finish(asyncio.ensure_future(running.network.close()))
            raise
        running.contacts = await finish(asyncio.ensure_future(running.network.close()))
    finally:
        lease.release()


async def _lease(context: BuildContext) -> UserLease:
    """An id for the helper that nobody else has."""
    while (lease := context.networks.users.try_acquire()) is None:
        await asyncio.sleep(_POLL)
    return lease


async def _open(context: BuildContext, user: BuildUser, resolvers: Resolvers) -> NatNetwork:
    try:
        programs = find_programs(f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PROGRAMS}")
        spec = NatSpec(
            host_uid=user.uid,
            host_gid=user.gid,
            rules=tuple(_sandbox_rule(rule) for rule in context.settings.fod_network_rules),
            resolvers=resolvers.outside,
            local_resolver=resolvers.local,
            pasta=programs.pasta,
            nft=programs.nft,
        )
        return await (await context.networks.get()).open(spec)
    except NetworkUnavailableError as error:
        raise NetworkUnavailableError(
            f"{error}; it would have a network of its own, as 'fod-network = isolated' says: "
            "'host' gives it this machine's, and all that this reaches, and 'none' only loopback"
        ) from error


def _sandbox_rule(rule: NetworkRule) -> SandboxRule:
    return SandboxRule(
        allow=rule.allow,
        destination=rule.destination,
        protocol=rule.protocol,
        ports=rule.ports,
    )


def contact_lines(contacts: Contacts) -> list[str]:
    """What a build talked to, for people; empty if nothing."""
    lines = []
    for allowed, what in ((True, "sent to"), (False, "was kept from")):
        found = [contact for contact in contacts.contacts if contact.allowed is allowed]
        if found:
            shown = ", ".join(_contact_text(contact) for contact in found[:_MAX_SHOWN])
            more = f" and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
            lines.append(f"{what} {shown}{more}")
    return lines


def _contact_text(contact: Contact) -> str:
    host = f"[{contact.address}]" if ":" in contact.address else contact.address
    return f"{contact.protocol} {host}:{contact.port}"
