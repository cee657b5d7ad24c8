"""Sandboxes: certificates, links, and a sandbox in a sandbox.

Upstream: linux-sandbox, nested-sandboxing, supplementary-groups.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from executor.build.result import exit_status
from executor.config import SandboxPath
from executor.derivation import DeferredOutput
from tests.build.conftest import HOST_PROGRAMS, Workshop, fixed

pytestmark = pytest.mark.root

_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_LOOK = f"if [ -e {_BUNDLE} ]; then cat {_BUNDLE} > $out; else echo missing > $out; fi"


@pytest.fixture
def certificates(workshop: Workshop) -> Path:
    """A directory with a bundle, a link to it, and a link to that."""
    directory = workshop.directory / "certificates"
    directory.mkdir()
    (directory / "file").write_text("certificates\n")
    (directory / "link").symlink_to(directory / "file")
    (directory / "chain").symlink_to(directory / "link")
    return directory


@pytest.mark.parametrize(
    ("name", "is_fixed", "seen"),
    [
        ("file", False, "missing\n"),
        ("file", True, "certificates\n"),
        ("link", True, "certificates\n"),
        ("chain", True, "certificates\n"),
        ("nonexistent", True, "missing\n"),
        ("", True, "missing\n"),
    ],
)
def test_certificates_are_shown_to_fixed_outputs_only(
    workshop: Workshop, certificates: Path, name: str, is_fixed: bool, seen: str
) -> None:
    outputs = {"out": fixed(seen.encode()) if is_fixed else DeferredOutput()}
    drv = workshop.make("looker", _LOOK, outputs=outputs)
    file = str(certificates / name) if name else ""
    run = workshop.build(drv, ssl_cert_file=file)
    assert run.result.success, run.result.message
    assert workshop.real(drv.out).read_text() == seen


def test_nothing_can_be_written_below_etc(workshop: Workshop) -> None:
    run = workshop.build(workshop.make("etc", "echo > /etc/test"))
    assert exit_status(run.results) == 100
    assert "can't create /etc/test: Permission denied" in run.text


def test_a_link_among_the_inputs_stays_a_link(workshop: Workshop) -> None:
    target = workshop.make("target")
    link = workshop.make("link", "ln -s $target_out $out", inputs=[target])
    drv = workshop.make(
        "user", "[ -L $link_out ]; [ $(cat $link_out) = made ]; echo > $out", inputs=[link]
    )
    assert workshop.build(drv).result.success


def test_sandbox_paths_may_be_files_directories_and_links(
    workshop: Workshop, certificates: Path
) -> None:
    """A link is there as a link: what it points to is only there if that is shown, too."""
    directory = workshop.directory / "directory"
    directory.symlink_to(certificates)
    shown = {
        "/file": certificates / "file",
        "/dir": certificates,
        "/symlink": certificates / "link",
        "/symlinkDir": directory,
    }
    paths = tuple(
        SandboxPath(target=target, source=str(source), read_only=True)
        for target, source in shown.items()
    )
    script = (
        "[ ! -L /file -a ! -L /dir -a -L /symlink -a -L /symlinkDir ];"
        "cat /file /dir/file > $out;"
        "for path in /symlink /symlinkDir; do busybox readlink $path >> $out; done"
    )
    drv = workshop.make("looker", script)
    run = workshop.build(drv, sandbox_paths=(*workshop.settings.sandbox_paths, *paths))
    assert run.result.success, run.text + run.result.message
    targets = (certificates / "file", certificates)
    assert workshop.real(drv.out).read_text().split() == ["certificates"] * 2 + [
        str(path) for path in targets
    ]


def test_an_executor_in_a_sandbox_says_that_it_is_not_root(workshop: Workshop) -> None:
    """Builders are nobody special, so that the inner one refuses instead of failing half-way."""
    python = Path(sys.executable).resolve()
    code = Path(__file__).parents[2]
    directories = {str(python.parents[1]), str(code), *filter(os.path.isdir, sys.path)}
    above = [*directories, "/usr", "/lib"]
    # Only what isn't below another one.
    roots = {
        path for path in directories if not any(path.startswith(f"{other}/") for other in above)
    } - {"/usr"}
    paths = (
        *workshop.settings.sandbox_paths,
        *HOST_PROGRAMS,
        *(SandboxPath(target=path, source=path, read_only=True) for path in sorted(roots)),
    )
    drv = workshop.make(
        "outer",
        f"export HOME=$PWD PYTHONPATH={':'.join([str(code), *sys.path])};"
        f"{python} -m executor build --store $PWD/inner ./none.drv || echo code $? >&2; exit 7",
    )
    run = workshop.build(drv, sandbox_paths=paths)
    assert run.result.exit_code == 7, run.result.message
    assert "error: building needs root" in run.text
    assert "code 1" in run.text


def test_groups_that_can_not_be_dropped_are_an_error(workshop: Workshop) -> None:
    """In a user namespace without ``setgroups`` no build user can be had."""
    drv = workshop.make("plain")
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", *workshop.command("build", drv.text)],
        env=workshop.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "\nerror: " in done.stderr or done.stderr.startswith("error: ")
    assert not workshop.is_valid(drv.out)
