"""From a prepared build to the sandbox that runs it: pure, but for reading what it copies in.

Everything that the builder will see is decided here. What the network of a fixed-output build
needs of the host (resolver configuration, certificates) is bound read-only or copied.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from executor.build.context import BUILTIN_ENTRY
from executor.build.failure import unusable
from executor.build.network import NetworkView, network_view
from executor.build.prepare import Preparation
from executor.build.sandbox_files import sandbox_files
from executor.build.users import BuildUser
from executor.build.workspace import Workspace
from executor.builtins.options import BuiltinOptions
from executor.config import SandboxPath, Settings
from executor.derivation import Derivation, FixedOutput
from executor.errors import ConfigError
from executor.formats.content_address import IngestionMethod
from executor.formats.store_path import StoreDir
from executor.store.local import LocalStore
from sandbox import Bind, Call, Cgroup, Exec, File, InputPath, Network, SandboxSpec, SpecError

_METHODS = {
    IngestionMethod.FLAT: "flat",
    IngestionMethod.NAR: "nar",
    IngestionMethod.TEXT: "text",
    IngestionMethod.GIT: "git",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """A sandbox, and the files to put into the build directory before it starts.

    ``files`` are (name, content, mode). ``warnings`` are sentences for people.
    """

    spec: SandboxSpec
    files: tuple[tuple[bytes, bytes, int], ...]
    network: NetworkView
    is_builtin: bool
    warnings: tuple[str, ...]


def make_request(
    preparation: Preparation,
    settings: Settings,
    user: BuildUser,
    workspace: Workspace,
    store: LocalStore,
    extra_paths: Iterable[SandboxPath] = (),
) -> BuildRequest:
    """Decide the sandbox of one build. Raises ``BuildFailureError`` if none can hold it."""
    derivation = preparation.derivation
    inside = os.fsencode(settings.sandbox_build_dir)
    environment = preparation.environment
    secrets = _builtin_files(derivation, settings)
    paths = [*settings.sandbox_paths, *extra_paths]
    view = network_view(derivation, settings)
    try:
        spec = SandboxSpec(
            name=preparation.drv_path.name,
            entry=_entry(derivation),
            argv=(*environment.arguments[:1], *_arguments(preparation, settings, secrets)),
            environment=environment.variables,
            working_directory=inside,
            root_directory=os.fsencode(workspace.root_directory),
            store_directory=os.fsencode(store.store_dir.path),
            scratch_store=os.fsencode(workspace.scratch_store),
            inputs=_inputs(preparation, store),
            binds=(*_sandbox_binds(paths, store.store_dir), *view.binds),
            build_directory=Bind(
                source=os.fsencode(workspace.build_directory), target=inside, read_only=False
            ),
            temporary_directory=os.fsencode(workspace.temporary_directory),
            files=(
                *_files(inside, user, isolated=view.kind is Network.ISOLATED),
                *view.files,
            ),
            host_uid=user.uid,
            host_gid=user.gid,
            id_count=user.count,
            inside_uid=_inside_ids(user)[0],
            inside_gid=_inside_ids(user)[1],
            cgroup=_cgroup(user, settings),
            network=view.kind,
            kvm="kvm" in settings.system_features,
            dev_shm_size=settings.sandbox_dev_shm_size,
            machine=_machine(derivation, settings),
        )
    except SpecError as error:
        name = store.store_dir.render(preparation.drv_path)
        raise unusable(f"can't build '{name}': {error}") from error
    return BuildRequest(
        spec=spec,
        files=(*((file.name, file.content, 0o644) for file in environment.files), *secrets),
        network=view,
        is_builtin=derivation.is_builtin,
        warnings=preparation.options.warnings,
    )


def _entry(derivation: Derivation) -> Exec | Call:
    return Call(BUILTIN_ENTRY) if derivation.is_builtin else Exec(derivation.builder)


def _machine(derivation: Derivation, settings: Settings) -> str | None:
    """The personality of a 32-bit build (row E8)."""
    if derivation.platform == "i686-linux" and settings.system == "x86_64-linux":
        return "i686"
    return None


def _arguments(
    preparation: Preparation, settings: Settings, secrets: tuple[tuple[bytes, bytes, int], ...]
) -> tuple[bytes, ...]:
    """The builder's arguments; a builtin gets its options instead."""
    if not preparation.derivation.is_builtin:
        return preparation.environment.arguments[1:]
    names = {name for name, _content, _mode in secrets}
    fixed = preparation.derivation.outputs.get("out")
    fixed = fixed if isinstance(fixed, FixedOutput) else None
    return BuiltinOptions(
        output_method=_METHODS[fixed.method] if fixed else None,
        output_hash=fixed.hash if fixed else None,
        hashed_mirrors=settings.hashed_mirrors,
        netrc_file=_NETRC if _NETRC in names else None,
        ca_file=_CA_FILE if _CA_FILE in names else None,
        connect_timeout=settings.connect_timeout,
        attempts=settings.download_attempts,
    ).render()


_NETRC = b".netrc"
_CA_FILE = b".ca-certificates.crt"


def _builtin_files(
    derivation: Derivation, settings: Settings
) -> tuple[tuple[bytes, bytes, int], ...]:
    """What ``builtin:fetchurl`` gets in its build directory, readable by nobody else (D27)."""
    if derivation.builder != b"builtin:fetchurl" or not derivation.has_network:
        return ()
    files = []
    for name, path in ((_NETRC, settings.netrc_file), (_CA_FILE, settings.ssl_cert_file)):
        content = _read_optional(path)
        if content is not None:
            files.append((name, content, 0o600))
    return tuple(files)


def _read_optional(path: str | None) -> bytes | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"can't read '{path}': {error.strerror}") from error


def _inputs(preparation: Preparation, store: LocalStore) -> tuple[InputPath, ...]:
    """The input closure and the closure of sandbox paths, but for what is being built."""
    building = set(preparation.outputs.values())
    paths = (preparation.inputs | preparation.sandbox_closure) - building
    directory = os.fsencode(store.location.real_store_dir) + b"/"
    names = sorted([path.base_name.encode() for path in paths])
    return tuple([InputPath(source=directory + name, name=name) for name in names])


def _sandbox_binds(paths: Iterable[SandboxPath], store_dir: StoreDir) -> tuple[Bind, ...]:
    """Host paths that the settings expose.

    Later ones win over earlier ones with the same target. A target that is a store path is in the
    inputs already; a source in the store is always read-only.
    """
    prefix = store_dir.path + "/"
    by_target = {path.target: path for path in paths}
    return tuple(
        Bind(
            source=os.fsencode(path.source),
            target=os.fsencode(path.target),
            read_only=path.read_only or _lies_in_store(path, store_dir),
            optional=path.optional,
        )
        for path in by_target.values()
        if not (path.target == path.source and path.target.startswith(prefix))
    )


def _lies_in_store(path: SandboxPath, store_dir: StoreDir) -> bool:
    """Whether a source is one of the store's paths, which no builder can have changed."""
    parts = path.source.removeprefix(store_dir.path + "/").split("/")
    return path.source.startswith(store_dir.path + "/") and ".." not in parts


def shares_with_host(paths: Iterable[SandboxPath], store_dir: StoreDir) -> bool:
    """Whether a builder could pass a descriptor of its outputs out through a sandbox path.

    Directories may hold sockets, writable or not; regular files and the store's own paths can't.
    """
    for path in paths:
        if _lies_in_store(path, store_dir):
            continue
        try:
            if not stat.S_ISREG(os.stat(path.source).st_mode):
                return True
        except OSError:
            continue  # not there: optional, or an error that the sandbox will report
    return False


def _inside_ids(user: BuildUser) -> tuple[int, int]:
    """The ids that the builder sees as its own: with a range of them it is root."""
    return (1000, 100) if user.count == 1 else (0, 0)


def _cgroup(user: BuildUser, settings: Settings) -> Cgroup:
    """The control group: there has to be one if the settings or the builder will look for it."""
    delegated = user.count > 1
    return Cgroup(required=delegated or settings.use_cgroups, delegated=delegated)


def _files(build_directory: bytes, user: BuildUser, *, isolated: bool) -> tuple[File, ...]:
    uid, gid = _inside_ids(user)
    return tuple(
        File(path=file.path, content=file.content, mode=file.mode)
        for file in sandbox_files(
            build_directory=build_directory, isolated=isolated, uid=uid, gid=gid
        )
    )
