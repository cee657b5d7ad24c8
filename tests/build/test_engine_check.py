"""Building what is valid once more: same, different, impossible; what is left for a look."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

import pytest

from executor.build.check import MOST_OF_DIFF_HOOK
from executor.build.plan import Target
from executor.build.result import BuildStatus
from tests.build.conftest import (
    FOREVER,
    SLEEPING,
    Drv,
    Run,
    Workshop,
    fixed,
    processes_with,
    wait_until,
)
from tests.build.conftest import workshop as workshop

pytestmark = pytest.mark.root

CHANGING = "head -c 8 /dev/urandom > "


def check(workshop: Workshop, *drvs: Drv, **settings: object) -> Run:
    targets = (Target(drv_path=drv.path, check=True) for drv in drvs)
    return workshop.build_targets(*targets, **settings)


def test_the_same_again_is_a_success_and_really_built(workshop: Workshop) -> None:
    drv = workshop.make("same")
    workshop.build(drv)
    before = workshop.info(drv.out)
    run = check(workshop, drv)
    assert run.result.status is BuildStatus.BUILT
    assert run.started == [drv.path]
    assert workshop.info(drv.out) == before
    assert workshop.leftovers() == []


def test_an_output_that_came_from_elsewhere_is_ultimate_from_then_on(workshop: Workshop) -> None:
    drv = workshop.make("same")
    workshop.build(drv)
    with workshop.store() as store:
        store.register([replace(store.query_path_info(drv.out), ultimate=False)])
    assert not workshop.info(drv.out).ultimate
    assert check(workshop, drv).result.success
    assert workshop.info(drv.out).ultimate


def test_every_output_that_differs_is_named_and_the_valid_ones_stay(workshop: Workshop) -> None:
    script = f"{CHANGING} $out; {CHANGING} $doc; echo same > $dev"
    drv = workshop.make("changing", script, outputs=("out", "dev", "doc"))
    workshop.build(drv)
    before = workshop.real(drv.out).read_bytes()
    result = check(workshop, drv).result
    assert result.status is BuildStatus.NOT_DETERMINISTIC
    for name in ("out", "doc"):
        assert f"output '{workshop.real(drv.outputs[name])}' differs" in result.message
    assert str(workshop.real(drv.outputs["dev"])) not in result.message
    assert workshop.real(drv.out).read_bytes() == before
    assert workshop.leftovers() == []


def test_only_wanted_outputs_are_compared(workshop: Workshop) -> None:
    drv = workshop.make("partly", f"{CHANGING} $out; echo same > $dev", outputs=("out", "dev"))
    workshop.build(drv)
    target = Target(drv_path=drv.path, outputs=frozenset({"dev"}), check=True)
    assert workshop.build_targets(target).result.success


def test_what_is_not_valid_can_not_be_checked(workshop: Workshop) -> None:
    drv = workshop.make("never")
    result = check(workshop, drv).result
    assert "some outputs of" in result.message
    assert "checking is not possible" in result.message
    assert not workshop.is_valid(drv.out)


def test_the_new_tree_is_kept_with_keep_failed(workshop: Workshop) -> None:
    drv = workshop.make("changing", f"mkdir $out; {CHANGING} $out/file")
    workshop.build(drv)
    kept = workshop.real(drv.out).with_name(drv.out.base_name + ".check")
    for _ in range(2):  # the second replaces the first
        result = check(workshop, drv, keep_failed=True).result
        assert f"differs from '{kept}'" in result.message
        assert (kept / "file").read_bytes() != (workshop.real(drv.out) / "file").read_bytes()
        assert kept.stat().st_uid == 0
    subprocess.run(["chmod", "-R", "u+w", kept], check=True)


def test_the_diff_hook_leaves_nothing_behind(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its user may build something else soon."""
    monkeypatch.setattr("executor.build.program._AFTERWARDS_SECONDS", 0.3)
    drv = workshop.make("changing", f"{CHANGING} $out")
    workshop.build(drv)
    hook = workshop.directory / "hook"
    hook.write_text(f"#!/bin/sh\n{FOREVER} &\necho said\n")
    hook.chmod(0o755)
    for directory in (workshop.directory, *workshop.directory.parents):
        if directory != directory.parent and not os.stat(directory).st_mode & 1:
            directory.chmod(0o755)
    run = check(workshop, drv, diff_hook=str(hook), run_diff_hook=True)
    assert run.notices == ["said"]
    wait_until(lambda: processes_with(SLEEPING) == [], "the end of what it left")


def test_row_158_what_a_diff_hook_says_of_huge_outputs_is_cut(workshop: Workshop) -> None:
    """A builder decides what the hook has to tell."""
    drv = workshop.make("changing", f"{CHANGING} $out")
    workshop.build(drv)
    hook = workshop.directory / "hook"
    hook.write_text("#!/bin/sh\necho first\nhead -c 200000000 /dev/zero | tr '\\0' x\n")
    hook.chmod(0o755)
    for directory in (workshop.directory, *workshop.directory.parents):
        if directory != directory.parent and not os.stat(directory).st_mode & 1:
            directory.chmod(0o755)
    run = check(workshop, drv, diff_hook=str(hook), run_diff_hook=True)
    (notice,) = run.notices
    assert notice.startswith("first\nxxx")
    assert notice.endswith("x\n[what follows was left out]")
    assert len(notice) < MOST_OF_DIFF_HOOK + 100


@pytest.mark.parametrize("fails", [False, True])
def test_the_diff_hook_gets_both_trees_as_the_build_user(workshop: Workshop, fails: bool) -> None:
    drv = workshop.make("changing", f"{CHANGING} $out")
    workshop.build(drv)
    hook = workshop.directory / "hook"
    hook.write_text(
        f'#!/bin/sh\necho "$(id -u) $(pwd) $1 $2 $3"\ncmp -s "$1" "$2"\nexit {fails:d}\n'
    )
    hook.chmod(0o755)
    for directory in (workshop.directory, *workshop.directory.parents):
        if directory != directory.parent and not os.stat(directory).st_mode & 1:
            directory.chmod(0o755)
    run = check(workshop, drv, diff_hook=str(hook), run_diff_hook=True)
    assert run.result.status is BuildStatus.NOT_DETERMINISTIC
    valid = workshop.real(drv.out)
    if fails:
        assert any("diff hook execution failed" in text for text in run.notices)
    else:
        (notice,) = run.notices
        uid, rest = notice.split(" ", 1)
        assert rest == f"/ {valid} {valid}.check {drv.text}"
        assert int(uid) > 1000


def test_a_fixed_output_with_another_hash_is_not_taken_in(workshop: Workshop) -> None:
    directory = workshop.directory / "shown"
    directory.mkdir(mode=0o755)
    source = directory / "value"
    source.write_text("good\n")
    shown = workshop.shown(directory, "/shown")
    drv = workshop.make("fixed", "cat /shown/value > $out", outputs={"out": fixed(b"good\n")})
    paths = (*workshop.settings.sandbox_paths, shown)
    assert workshop.build(drv, sandbox_paths=paths).result.success
    with workshop.store() as store:
        before = store.query_all_valid()
    source.write_text("bad\n")
    result = check(workshop, drv, sandbox_paths=paths).result
    assert result.status is BuildStatus.HASH_MISMATCH
    with workshop.store() as store:
        assert store.query_all_valid() == before


def test_the_command_line_has_nix_s_exit_code(workshop: Workshop) -> None:
    same, changing = workshop.make("same"), workshop.make("changing", f"{CHANGING} $out")
    workshop.build(same, changing)
    assert workshop.cli("build", "--check", same.text).returncode == 0
    done = workshop.cli("build", "--check", changing.text)
    assert done.returncode == 104
    assert "may not be deterministic" in done.stderr


def test_repeated_builds_that_agree_are_one_build(workshop: Workshop) -> None:
    drv = workshop.make("same", "echo run; echo made > $out")
    run = workshop.build(drv, repeat=2)
    assert run.result.status is BuildStatus.BUILT
    assert run.log == [b"run"] * 3
    assert workshop.is_valid(drv.out)
    assert workshop.leftovers() == []


def test_repeated_builds_that_differ_leave_nothing(workshop: Workshop) -> None:
    drv = workshop.make("changing", f"{CHANGING} $out; echo same > $dev", outputs=("out", "dev"))
    run = workshop.build(drv, repeat=1)
    assert run.result.status is BuildStatus.NOT_DETERMINISTIC
    assert (
        f"output '{workshop.real(drv.out)}' differs from the previous round" in run.result.message
    )
    assert str(workshop.real(drv.outputs["dev"])) not in run.result.message
    assert not workshop.is_valid(drv.out)
    assert workshop.leftovers() == []


def test_determinism_need_not_be_enforced(workshop: Workshop) -> None:
    drv = workshop.make("changing", f"{CHANGING} $out")
    run = workshop.build(drv, repeat=1, enforce_determinism=False)
    assert run.result.success
    assert ["may not be deterministic" in text for text in run.notices] == [True]


def test_a_fixed_output_is_not_repeated(workshop: Workshop) -> None:
    drv = workshop.make("fixed", "echo run; echo good > $out", outputs={"out": fixed(b"good\n")})
    assert workshop.build(drv, repeat=3).log == [b"run"]


def test_repeat_is_an_option_of_the_command_line(workshop: Workshop) -> None:
    drv = workshop.make("changing", f"{CHANGING} $out")
    assert workshop.cli("build", "--repeat", "1", drv.text).returncode == 104
