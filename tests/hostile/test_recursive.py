"""Builders with a socket of ours in their sandbox (row 63): what they see of the store, and add."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from executor.build.result import BuildStatus
from executor.config import SandboxPath
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import make_text_path
from executor.store.collect import CollectOptions
from tests.build.conftest import HOST_PROGRAMS, Run, Workshop, wait_until
from tests.hostile.inside import log_of

pytestmark = [pytest.mark.root, pytest.mark.nix]
ROOT = Path(__file__).parents[2]
NIX = {"requiredSystemFeatures": "recursive-nix", "PATH": "/usr/bin:/bin", "HOME": "/build"}
QUIET = "export NIX_CONFIG='experimental-features = nix-command'; "
INNER = """cat > inner.nix <<'EOF'
derivation { name = "inner"; system = "x86_64-linux"; builder = "/bin/sh";
             args = ["-c" "echo building inner; echo inner > $out"]; }
EOF
"""
PYTHON = Path(sys.executable).resolve()


def wide(workshop: Workshop) -> dict[str, Any]:
    """Settings with the feature, and with programs of the host to talk with."""
    directories = {str(PYTHON.parents[1]), str(ROOT), *filter(os.path.isdir, sys.path)}
    above = [*directories, "/usr", "/lib"]
    roots = {
        path for path in directories if not any(path.startswith(f"{other}/") for other in above)
    } - {"/usr"}
    return {
        "experimental_features": frozenset({"recursive-nix"}),
        "sandbox_paths": (
            *workshop.settings.sandbox_paths,
            *HOST_PROGRAMS,
            *(SandboxPath(target=path, source=path, read_only=True) for path in sorted(roots)),
        ),
    }


def inside(*words: str) -> str:
    """The command that runs our client as a builder."""
    path = ":".join([str(ROOT), *filter(os.path.isdir, sys.path)])
    return f"PYTHONPATH={path} {PYTHON} -m tests.hostile.restricted_inside {' '.join(words)}"


def build(workshop: Workshop, script: str, name: str = "outer", **more: Any) -> Run:
    """Build a derivation that requires the feature."""
    drv = workshop.make(name, QUIET + script, env=NIX, **more)
    return workshop.build(drv, **wide(workshop))


def test_row_063_a_builder_builds_with_stock_nix(workshop: Workshop) -> None:
    script = (
        INNER + "echo added > file; p=$(nix-store --add file); cat $p;"
        " d=$(nix-instantiate inner.nix); o=$(nix-store -r $d); cat $o;"
        " nix-store -q --references $d; nix-store -qR $o | cat;"
        " touch $o || echo kept; echo $o $p > $out"
    )
    run = build(workshop, script)
    assert run.result.success, run.text
    assert "added" in run.text.splitlines()
    assert "inner" in run.text.splitlines()
    assert "building inner" in run.text.splitlines()
    assert "kept" in run.text.splitlines()
    out = run.result.outputs["out"]
    inner, added = workshop.real(out).read_text().split()
    with workshop.store() as store:
        references = {
            store.store_dir.render(path) for path in store.query_path_info(out).references
        }
        assert references == {inner, added}
        assert store.query_path_info(store.store_dir.parse(inner)).deriver is not None
        assert not store.verify(check_contents=True)
    assert workshop.leftovers() == []


def test_row_063_a_builder_hears_of_nothing_that_it_doesnt_see(workshop: Workshop) -> None:
    with workshop.store() as store:
        secret = store.add_text("secret", b"a secret")
        known = store.add_text("known", b"known", ())
        store.add_signatures(known, ["key:c2lnbmF0dXJl"])
        names = [store.store_dir.render(path) for path in (secret, known)]
    run = build(workshop, f"{inside('spy', *names)}; echo > $out", sources=[known])
    assert run.result.success, (run.result.message, run.text)
    said = dict(line.split(" ", 1) for line in run.text.splitlines())
    assert said.pop("trust") == "NOT_TRUSTED"
    told = {
        "valid": "False",
        "info": "None",
        "valid-set": "[]",
        "all": "False",
        "referrers": "[]",
        "derivers": "[]",
        "missing": "True",
        "roots": "{}",
        "realisation": "None",
        "dead": "([], 0)",
        "delete": "([], 0)",
        "known": "True",
        "censored": "(None, 0, ())",
        "options": "None",
    }
    assert {name: said.pop(name) for name in told} == told
    unknown = f"unknown path '{names[0]}' in recursive Nix"
    refusals = {
        "output-map": f"cannot query output map for {unknown}",
        "nar": f"cannot dump {unknown}",
        "ensure": f"cannot substitute {unknown}",
        "build": f"cannot build '{names[0]}' in recursive Nix because path is unknown",
        "refer": f"path '{names[0]}' is not valid",
        "hash-part": "invalid operation 29",
        "sign": "invalid operation 37",
        "register": "invalid operation 42",
        "log": "invalid operation 45",
        "root": "invalid operation 47",
        "sent": "invalid operation 36",
    }
    assert said == {name: f"refused: {text}" for name, text in refusals.items()}
    assert workshop.real(secret).read_text() == "a secret"


def test_row_063_what_is_added_can_neither_be_moved_nor_caught(workshop: Workshop) -> None:
    paths = []
    for number in range(2):
        digest = hash_bytes(HashAlgorithm.SHA256, f"contents {number}".encode())
        path = make_text_path(workshop.location.store_dir, f"second{number}", digest, ())
        paths.append(workshop.location.store_dir.render(path))
    run = build(workshop, f"{inside('squat', *paths)}; echo > $out")
    assert run.result.success, (run.result.message, run.text)
    lines = run.text.splitlines()
    assert lines.count("first True") == 2
    squatted = [line for line in lines if line.startswith("squatted")]
    assert [line.rpartition(": ")[2] for line in squatted] == ["File exists"] * 2
    others = [line for line in lines if line.startswith(("move", "remove", "write"))]
    assert len(others) == 6
    assert all("refused: [Errno " in line for line in others)


def test_row_063_without_the_feature_there_is_nothing(workshop: Workshop) -> None:
    drv = workshop.make("nested", env=NIX)
    assert workshop.build(drv).result.status is BuildStatus.INPUT_REJECTED
    script = "env | busybox grep -c NIX_REMOTE || true; busybox find /build -type s || true"
    plain = workshop.make("plain", f"{script}; echo > $out")
    run = workshop.build(plain, experimental_features=frozenset({"recursive-nix"}))
    assert run.text == "0"
    assert log_of(workshop, script) == ["0"]


def test_row_063_what_is_built_inside_ends_with_the_builder(workshop: Workshop) -> None:
    slow = INNER.replace("echo inner >", "while :; do :; done; echo >").replace("inner", "slow")
    script = slow + (
        "d=$(nix-instantiate slow.nix); (nix-store -r $d 2>&1 | while read line; do echo $line;"
        ' [ "$line" = "building slow" ] && echo > begun; done) &'
        " while [ ! -e begun ]; do sleep 0.1; done; echo > $out"
    )
    begin = time.monotonic()
    run = build(workshop, script)
    assert run.result.success, (run.result.message, run.text)
    assert time.monotonic() - begin < 30
    assert workshop.leftovers() == []


def test_row_063_a_crowd_of_connections_ends_with_the_builder(workshop: Workshop) -> None:
    before = len(os.listdir("/proc/self/fd"))
    run = build(workshop, f"{inside('crowd')}; echo > $out")
    assert run.result.success, (run.result.message, run.text)
    assert run.text.splitlines()[-1] == "held True"
    assert len(os.listdir("/proc/self/fd")) == before
    assert workshop.leftovers() == []


def test_row_063_the_collector_leaves_what_a_running_build_has_added(workshop: Workshop) -> None:
    flag = workshop.directory / "flags"
    flag.mkdir()
    flag.chmod(0o777)
    shown = SandboxPath(target="/flags", source=str(flag))
    script = (
        "echo added > file; p=$(nix-store --add file); echo $p > /flags/added;"
        " while [ ! -e /flags/go ]; do sleep 0.05; done; cat $p; echo $p > $out"
    )
    drv = workshop.make("outer", QUIET + script, env=NIX)
    settings = wide(workshop)
    settings["sandbox_paths"] += (shown,)
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(workshop.build(drv, **settings)))
    thread.start()
    wait_until(lambda: (flag / "added").exists() and bool((flag / "added").read_text()), "a path")
    with workshop.store() as store:
        added = store.store_dir.parse((flag / "added").read_text().strip())
        store.collect_garbage(CollectOptions())
        assert store.is_valid(added)
    (flag / "go").touch()
    thread.join(60)
    assert runs[0].result.success, runs[0].text
    with workshop.store() as store:
        assert store.query_path_info(drv.out).references == {added}


def test_row_063_a_range_of_ids_and_a_socket_dont_mix(workshop: Workshop) -> None:
    env = {**NIX, "requiredSystemFeatures": "recursive-nix uid-range"}
    drv = workshop.make("both", "echo > $out", env=env)
    features = frozenset({"recursive-nix", "auto-allocate-uids", "cgroups"})
    run = workshop.build(
        drv,
        experimental_features=features,
        auto_allocate_uids=True,
        system_features=workshop.settings.system_features | {"uid-range"},
    )
    assert "don't mix" in run.result.message
