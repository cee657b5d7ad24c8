"""Run Nix's own functional tests with the executor's daemon, or with stock Nix's.

Fetches nothing: takes the folder ``tests/functional`` of Nix's source at the version of the client
(2.34.8), works on a copy of it, and prints what passes and what doesn't. As root.

    python tests/nix-functional/run.py SUITE --daemon ours
    python tests/nix-functional/run.py SUITE --daemon stock --unsandboxed main/simple ca/build

Each test runs in a process namespace of its own, so that nothing of it is left, with a time limit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

VERSION = "2.34.8"
SUITES = {"main": ".", "ca": "ca", "dyn-drv": "dyn-drv"}
SKIPPED = 77
SANDBOX_PATHS = "/bin /usr /lib /lib64"
REPOSITORY = Path(__file__).parent.parent.parent
EXPECTED = Path(__file__).parent / "expected.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where a copy of the suite lies, and with what it runs."""

    directory: Path
    source: Path
    nix_bin: Path
    daemon: Path | None
    timeout: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one test."""

    name: str
    verdict: str
    seconds: float


def listed_tests(source: Path) -> Iterator[str]:
    """Names such as ``main/simple``, from the lists that Nix's build has."""
    for suite, folder in SUITES.items():
        text = (source / folder / "meson.build").read_text()
        for block in re.findall(r"'tests'\s*:\s*\[(.*?)\]", text, re.DOTALL):
            for script in re.findall(r"^\s*'([\w-]+)\.sh',", block, re.MULTILINE):
                if script not in ("test-libstoreconsumer", "plugins"):
                    yield f"{suite}/{script}"


def prepare(
    bench: Bench, suite: Path, *, sandboxed: bool, build_group: str, busybox: str | None
) -> None:
    """Make the copy, and what Nix's build generates in it."""
    shutil.copytree(suite, bench.source, symlinks=True)
    values = {
        "bindir": str(bench.nix_bin),
        "coreutils": str(Path(_program("ls")).parent),
        "dot": shutil.which("dot") or "",
        "bash": _program("bash"),
        "sandbox_shell": busybox or shutil.which("busybox") or "",
        "PACKAGE_VERSION": VERSION,
        "system": f"{os.uname().machine}-linux",
    }
    for folder in SUITES.values():
        for template in (bench.source / folder).glob("*.nix.in"):
            _fill(template, values)
    _fill(bench.source / "common" / "subst-vars.sh.in", values)
    if sandboxed:
        init = bench.source / "common" / "init.sh"
        text = init.read_text()
        text = text.replace(
            "sandbox = false",
            f"sandbox = true\nsandbox-paths = {SANDBOX_PATHS} $_NIX_TEST_SHARED?",
        )
        text = text.replace("build-users-group =\n", f"build-users-group = {build_group}\n")
        # What the daemon mounts into sandboxes has to be there, and builders write to it.
        text = text.replace(
            'mkdir "$NIX_CONF_DIR"\n',
            'mkdir "$NIX_CONF_DIR"\nmkdir -p -m 1777 "$_NIX_TEST_SHARED"\n',
        )
        init.write_text(text)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"'{name}' is not on PATH")
    return found


def _fill(template: Path, values: dict[str, str]) -> None:
    text = template.read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    template.with_suffix("").write_text(text)


def make_daemon(directory: Path, nix: Path, *, ours: bool) -> Path:
    """A folder as NIX_DAEMON_PACKAGE names: its ``bin/nix`` is started as ``nix … daemon``."""
    binaries = directory / "bin"
    binaries.mkdir(parents=True)
    if not ours:
        (binaries / "nix").symlink_to(nix)
        return directory
    shim = f"""#!/bin/sh
case " $* " in
*" daemon --version "*) echo "nix (Nix) {VERSION}" ;;
*" daemon "*) while [ "$1" != daemon ]; do shift; done
    PYTHONPATH={REPOSITORY} exec {sys.executable} -m executor "$@" ;;
*) exec {nix} "$@" ;;
esac
"""
    (binaries / "nix").write_text(shim)
    (binaries / "nix").chmod(0o755)
    return directory


def run_test(bench: Bench, name: str) -> Outcome:
    """Run one test to its end, or to that of its time."""
    suite, script = name.split("/")
    log = bench.directory / "logs" / f"{suite}-{script}.log"
    begin = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *(_program("bash"), "-x", "-e", "-u", "-o", "pipefail", f"{script}.sh"),
            ],
            cwd=bench.source / SUITES[suite],
            env=_environment(bench, suite, script),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            verdict = _verdict(process.wait(bench.timeout))
        except subprocess.TimeoutExpired:
            verdict = "TIME"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return Outcome(name, verdict, time.monotonic() - begin)


def _environment(bench: Bench, suite: str, script: str) -> dict[str, str]:
    environment = {
        "PATH": f"{bench.nix_bin}:{os.environ['PATH']}",
        "HOME": str(bench.directory),
        "LANG": "C.UTF-8",
        "TMPDIR": str(bench.directory / "tmp"),
        "_NIX_TEST_SOURCE_DIR": str(bench.source),
        "_NIX_TEST_BUILD_DIR": str(bench.source),
        "TEST_SUITE_NAME": suite,
        "TEST_NAME": script,
        "NIX_REMOTE": "",
        "NIX_STORE": "",
        "shell": _program("bash"),
        "PS4": "+(${BASH_SOURCE[0]-$0}:$LINENO) ",
    }
    if bench.daemon is not None:
        environment["NIX_DAEMON_PACKAGE"] = str(bench.daemon)
    return environment


def _verdict(code: int) -> str:
    return {0: "PASS", SKIPPED: "SKIP"}.get(code, "FAIL")


def expected_failures(path: Path) -> dict[str, str]:
    """Tests that don't pass with our daemon, and why."""
    with path.open("rb") as file:
        reasons: dict[str, str] = tomllib.load(file)["failures"]
    return reasons


def report(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Print each as it comes, and how many there are of each kind."""
    told = []
    for outcome in outcomes:
        told.append(outcome)
        print(f"{outcome.verdict} {outcome.name} ({outcome.seconds:.1f} s)", flush=True)
    counts = Counter(outcome.verdict for outcome in told)
    print(", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items())))
    return told


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", type=Path, help="the folder tests/functional of Nix's source")
    parser.add_argument("tests", nargs="*", help="names such as main/simple (default: all)")
    parser.add_argument("--daemon", choices=("ours", "stock", "none"), default="ours")
    parser.add_argument("--nix-bin", type=Path, help="where the client is (default: by PATH)")
    parser.add_argument(
        "--unsandboxed", action="store_true", help="sandbox = false, no build users"
    )
    parser.add_argument("--build-users-group", default="nixbld")
    parser.add_argument("--busybox", help="one that runs by any name (default: by PATH)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for each test")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("/var/lib/nix-functional"),
        help="where to work: below directories that only root can write to; emptied before",
    )
    return parser.parse_intermixed_args()


def main() -> int:
    """The command line; 1 if something fails that isn't expected to."""
    arguments = _arguments()
    nix_bin = arguments.nix_bin or Path(_program("nix")).parent
    directory = arguments.directory
    if directory.exists():
        if not (directory / "logs").is_dir():
            raise SystemExit(f"'{directory}' exists and isn't of an earlier run")
        shutil.rmtree(directory)
    for name in ("logs", "tmp"):
        (directory / name).mkdir(parents=True)
    (directory / "tmp" / "nix-test").mkdir()
    daemon = None
    if arguments.daemon != "none":
        ours = arguments.daemon == "ours"
        daemon = make_daemon(directory / "daemon", nix_bin / "nix", ours=ours)
    bench = Bench(
        directory=directory,
        source=directory / "source",
        nix_bin=nix_bin,
        daemon=daemon,
        timeout=arguments.timeout,
    )
    prepare(
        bench,
        arguments.suite.resolve(),
        sandboxed=not arguments.unsandboxed,
        build_group=arguments.build_users_group,
        busybox=arguments.busybox,
    )
    names = arguments.tests or list(listed_tests(bench.source))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = report(pool.map(lambda name: run_test(bench, name), names))
    known = expected_failures(EXPECTED) if arguments.daemon == "ours" else {}
    bad = [each for each in outcomes if each.verdict in ("FAIL", "TIME") and each.name not in known]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
