"""Build derivations, and before them whatever they need.

A target is a .drv path of the store, or a JSON file with hand-written derivations. Behind a .drv
path, ^out,dev (or !out) chooses outputs; ^* and nothing mean all of them. Prints the output paths,
one a line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from executor.build.plan import Target, make_plan
from executor.build.result import BuildResult, BuildStatus, exit_status
from executor.cli.interrupts import EndedBySignal, run_until_signal, signals_wait
from executor.cli.options import Invocation
from executor.cli.stores import open_local_store, open_remote_store, open_store
from executor.cli.targets import resolve_targets
from executor.errors import UsageError
from executor.formats.store_path import StorePath
from executor.limits import Exceeded
from executor.store.location import DaemonAddress, default_socket

if TYPE_CHECKING:
    from executor.api import Executor
    from executor.cli.stores import Store
    from executor.remote import RemoteExecutor

EXAMPLE = """\
example:
  sudo executor build --store ./store -j 4 -L ./hello.json
  sudo executor build /nix/store/…-hello.drv^out --json
"""
_FORMATS = ("bar", "bar-with-logs", "raw", "raw-with-logs", "internal-json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="x.drv, x.drv^out or x.json")
    parser.add_argument("--json", action="store_true", help="print a record per derivation")
    parser.add_argument(
        "--check", action="store_true", help="build what is valid once more, and compare"
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="make again what has bad contents, with all that it refers to",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be built")
    parser.add_argument("-L", "--print-build-logs", action="store_true", help="show logs live")
    parser.add_argument("--log-format", choices=_FORMATS, help="how progress is shown")
    parser.add_argument(
        "--add-root", metavar="LINK", help="make LINK a root that keeps the outputs"
    )


def run(invocation: Invocation, arguments: argparse.Namespace) -> int:
    """Build; what is valid already is found without starting anything."""
    if invocation.daemon is None and os.geteuid() != 0:
        raise UsageError(
            "building needs root: namespaces, mounts and build users; try sudo"
            + _hint_of_daemon(invocation)
        )
    targets = _look(invocation, arguments)
    if targets is None:
        return 0
    if arguments.dry_run:
        return _dry_run(invocation, targets)
    try:
        results, code = _build(invocation, arguments, targets)
    except EndedBySignal as ended:
        invocation.say(0, f"error: {ended}; what was being built is removed")
        return ended.exit_code
    with open_store(invocation) as store:
        _finish(invocation, arguments, store, targets, results)
    return code


def _hint_of_daemon(invocation: Invocation) -> str:
    """What else somebody can do who isn't root, where the store is the machine's own."""
    if invocation.store not in (None, "auto"):
        return ""
    socket = default_socket(os.environ)
    return f", or have root start 'executor daemon': nobody listens at '{socket}'"


def _look(invocation: Invocation, arguments: argparse.Namespace) -> list[Target] | None:
    """What is to be built; None if all of it is there, and has been printed."""
    if invocation.daemon is not None:
        return _look_through_daemon(invocation, invocation.daemon, arguments)
    with open_local_store(invocation) as store:
        targets = [
            replace(target, check=arguments.check)
            for target in resolve_targets(store, arguments.targets)
        ]
        plan = make_plan(store, targets)
        done = all(plan.nodes[target.drv_path].is_done and not target.through for target in targets)
        if done and not arguments.repair:
            invocation.say(2, "all outputs are already valid")
            outputs = [plan.nodes[target.drv_path].outputs for target in targets]
            _finish(invocation, arguments, store, targets, _already_valid(targets, outputs))
            return None
    return targets


def _look_through_daemon(
    invocation: Invocation, daemon: DaemonAddress, arguments: argparse.Namespace
) -> list[Target] | None:
    with open_remote_store(invocation, daemon) as store:
        targets = [
            replace(target, check=arguments.check)
            for target in resolve_targets(store, arguments.targets)
        ]
        if arguments.check or arguments.repair or arguments.dry_run or not store.has_all(targets):
            return targets
        invocation.say(2, "all outputs are already valid")
        outputs = [store.query_known_outputs(target.drv_path) for target in targets]
        _finish(invocation, arguments, store, targets, _already_valid(targets, outputs))
        return None


def _already_valid(
    targets: Sequence[Target], outputs: Sequence[Mapping[str, StorePath]]
) -> list[BuildResult]:
    return [
        BuildResult(drv_path=target.drv_path, status=BuildStatus.ALREADY_VALID, outputs=some)
        for target, some in zip(targets, outputs, strict=True)
    ]


def _dry_run(invocation: Invocation, targets: Sequence[Target]) -> int:
    """Say what would be built and fetched, and what nobody has; 1 if a derivation is unusable."""
    from executor.cli.plan_text import plan_lines

    render = invocation.location.store_dir.render
    if invocation.daemon is not None:
        with open_remote_store(invocation, invocation.daemon) as store:
            for line in plan_lines(store.preview(targets), render):
                invocation.say(0, line)
        return 0
    with signals_wait():
        from executor.api import plan_only
        from executor.build.events import Event, Notice
        from executor.build.graph import planned
        from executor.cli.progress import notice_text

    def take(event: Event) -> None:
        if isinstance(event, Notice):
            invocation.say(event.level, notice_text(event.level, event.text))

    plan = run_until_signal(
        plan_only(
            targets, location=invocation.location, settings=invocation.settings, listener=take
        )
    )
    failures = [node.failure for node in plan.nodes.values() if node.failure is not None]
    for failure in failures:
        invocation.say(0, f"error: {failure.message}")
    for line in plan_lines(planned(plan), render):
        invocation.say(0, line)
    return 1 if failures else 0


def _build(
    invocation: Invocation, arguments: argparse.Namespace, targets: Sequence[Target]
) -> tuple[list[BuildResult], int]:
    """Results of the targets, and the exit code, which failures on the way have a say in."""
    # Imported here: a command that finds everything valid needs none of it.
    with signals_wait():
        make_builder = _builder_of(invocation)

        from executor.build.events import BuildFinished
        from executor.cli.progress import make_display

    everything: list[BuildResult] = []
    display = make_display(
        arguments.log_format,
        print_logs=arguments.print_build_logs,
        verbosity=invocation.verbosity,
        store_dir=invocation.location.store_dir,
        json_log_path=invocation.settings.json_log_path,
        log_command=_log_command(invocation),
    )

    def collect(event: object) -> None:
        if isinstance(event, BuildFinished):
            everything.append(event.result)

    async def build_all() -> list[BuildResult]:
        executor = make_builder()
        executor.subscribe(display.take, watch=display.watches)
        executor.subscribe(collect)
        async with executor:
            return await executor.build_all(targets, repair=arguments.repair)

    try:
        return run_until_signal(build_all()), exit_status(everything)
    finally:
        display.close()


def _builder_of(invocation: Invocation) -> Callable[[], Executor | RemoteExecutor]:
    """Who builds: this process, whose spawner is begun at once, or a daemon."""
    if invocation.daemon is None:
        from executor.build.early import launch_spawner

        launched = launch_spawner(invocation.location)
        _import_asyncio()

        from executor.api import Executor

        return lambda: Executor(
            store=invocation.store, settings=invocation.settings, spawner=launched
        )
    from executor.remote import RemoteExecutor

    return partial(
        RemoteExecutor,
        store=invocation.daemon,
        settings=invocation.settings,
        chosen=invocation.chosen,
        verbosity=invocation.verbosity,
    )


def _import_asyncio() -> None:
    """Without TLS, which takes a fifth of it, and which asyncio can do without.

    No stream of our event loop is encrypted: what is fetched over HTTPS is urllib3's, which imports
    ``ssl`` for itself.
    """
    if "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        import asyncio  # noqa: F401
    finally:
        del sys.modules["ssl"]


def _log_command(invocation: Invocation) -> str:
    """How to see a log of this store; the system's own needs no name."""
    if invocation.store is None:
        return "executor log"
    import shlex

    return f"executor log --store {shlex.quote(invocation.store)}"


def _finish(
    invocation: Invocation,
    arguments: argparse.Namespace,
    store: Store,
    targets: Sequence[Target],
    results: Sequence[BuildResult],
) -> None:
    """Print what there is, and keep it from the collector if asked to."""
    for number, (target, result) in enumerate(zip(targets, results, strict=True), 1):
        if result.success and arguments.add_root is not None:
            link = arguments.add_root + (f"-{number}" if number > 1 else "")
            _keep(store, link, target, result)
    if arguments.json:
        print(json.dumps([_record(invocation, result) for result in results], indent=2))
    else:
        for target, result in zip(targets, results, strict=True):
            for path in _wanted(target, result) if result.success else ():
                print(invocation.location.store_dir.render(path))


def _wanted(target: Target, result: BuildResult) -> list[StorePath]:
    """The paths that were asked for, in the order in which ``nix-store --realise`` has them."""
    names = result.outputs if target.outputs is None else target.outputs
    return sorted(result.outputs[name] for name in names)


def _keep(store: Store, link: str, target: Target, result: BuildResult) -> None:
    """Links to the outputs, as ``nix-store --realise --add-root`` makes them."""
    names = sorted(result.outputs if target.outputs is None else target.outputs)
    for name in names:
        suffix = "" if name == "out" else f"-{name}"
        store.add_permanent_root(link + suffix, result.outputs[name])


def _limit(exceeded: Exceeded | None) -> dict[str, object] | None:
    """The limit that stopped a build."""
    if exceeded is None:
        return None
    return {
        "resource": exceeded.limit.resource.value,
        "setting": exceeded.limit.setting,
        "value": exceeded.limit.value,
        "peak": exceeded.peak,
    }


def _network(result: BuildResult) -> dict[str, object] | None:
    """What a build with a network of its own sent to, and was kept from."""
    if result.contacts is None:
        return None
    told: dict[str, list[dict[str, object]]] = {"contacted": [], "denied": []}
    for contact in result.contacts.contacts:
        told["contacted" if contact.allowed else "denied"].append(
            {"protocol": contact.protocol, "address": contact.address, "port": contact.port}
        )
    return {**told, "complete": result.contacts.complete}


def _record(invocation: Invocation, result: BuildResult) -> dict[str, object]:
    render = invocation.location.store_dir.render
    return {
        "drvPath": render(result.drv_path),
        "outputs": {name: render(path) for name, path in sorted(result.outputs.items())},
        "status": result.status.label,
        "success": result.success,
        "cause": None if result.cause is None else result.cause.value,
        "error": result.message or None,
        "startTime": result.start_time,
        "stopTime": result.stop_time,
        "cpuUser": result.cpu_user,
        "cpuSystem": result.cpu_system,
        "memoryPeak": result.memory_peak,
        "pidsPeak": result.pids_peak,
        "diskPeak": result.disk_peak,
        "limit": _limit(result.exceeded),
        "exitCode": result.exit_code,
        "signal": result.signal,
        "logPath": result.log_path,
        "keptBuildDirectory": result.kept_build_directory,
        "network": _network(result),
    }
