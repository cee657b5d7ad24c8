"""What a build leaves in the store: contents, references, facts, and what is refused."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import Any

import pytest

from executor.build.result import BuildStatus, FailureCause, exit_status
from executor.formats.content_address import IngestionMethod
from executor.formats.store_path import make_fixed_output_path
from tests.build.conftest import FIND_OUT, HOST_PROGRAMS, Workshop, fixed, sha256, structured

pytestmark = pytest.mark.root


def nix(workshop: Workshop, *arguments: str) -> str:
    """What stock Nix says of the same store."""
    program, *rest = arguments
    done = subprocess.run(
        [program, "--store", str(workshop.root), *rest],
        env={**os.environ, "NIX_REMOTE": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_one_output_is_registered_and_readable(workshop: Workshop) -> None:
    drv = workshop.make("plain", "echo hello > $out")
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.BUILT
    assert dict(run.result.outputs) == {"out": drv.out}
    assert workshop.real(drv.out).read_text() == "hello\n"
    assert workshop.is_valid(drv.out)
    assert workshop.leftovers() == []


def test_an_output_is_canonical(workshop: Workshop) -> None:
    drv = workshop.make(
        "modes",
        "mkdir $out; echo a > $out/plain; echo b > $out/program; ln -s plain $out/link;"
        "chmod 600 $out/plain; chmod 711 $out/program; touch -d @86400 $out/plain",
    )
    assert workshop.build(drv).result.success
    real = workshop.real(drv.out)
    modes = {
        path.name: stat.S_IMODE(path.lstat().st_mode)
        for path in (real, real / "plain", real / "program")
    }
    assert modes == {real.name: 0o555, "plain": 0o444, "program": 0o555}
    assert os.readlink(real / "link") == "plain"
    for path in (real, *real.iterdir()):
        status = path.lstat()
        assert (status.st_uid, status.st_gid, status.st_mtime) == (0, 0, 1)


def test_each_of_several_outputs_is_registered(workshop: Workshop) -> None:
    drv = workshop.make(
        "several",
        "echo out > $out; mkdir $dev; echo dev > $dev/file; echo $dev > $doc",
        outputs=("out", "dev", "doc"),
    )
    run = workshop.build(drv)
    assert dict(run.result.outputs) == dict(drv.outputs)
    assert sorted(drv.outputs) == ["dev", "doc", "out"]
    assert (workshop.real(drv.outputs["dev"]) / "file").read_text() == "dev\n"
    assert workshop.info(drv.outputs["doc"]).references == {drv.outputs["dev"]}
    assert workshop.info(drv.out).references == frozenset()


def test_references_are_what_the_contents_name(workshop: Workshop) -> None:
    """Inputs that are not named don't count, and what an input names is in the closure only."""
    far = workshop.make("far")
    near = workshop.make("near", "echo $far_out > $out", inputs=[far])
    unused = workshop.make("unused")
    source = workshop.source("source", b"text")
    drv = workshop.make(
        "user",
        "mkdir $out; echo $near_out > $out/file; ln -s $source/x $out/link; echo $out > $out/self",
        inputs=[near, unused],
        sources=[source],
        env={"source": workshop.render(source)},
    )
    assert workshop.build(drv).result.success
    assert workshop.info(drv.out).references == {near.out, source, drv.out}
    assert workshop.info(near.out).references == {far.out}


def test_the_closure_of_inputs_is_visible_and_nothing_else(workshop: Workshop) -> None:
    far = workshop.make("far")
    near = workshop.make("near", "echo $far_out > $out", inputs=[far])
    other = workshop.make("other")
    drv = workshop.make("looker", "ls /nix/store > $out", inputs=[near])
    assert workshop.build(drv, other).results[0].success
    seen = workshop.real(drv.out).read_text().split()
    assert {near.out.base_name, far.out.base_name} <= set(seen)
    assert other.out.base_name not in seen
    assert not any(name.endswith(".drv") for name in seen)


def test_a_reference_to_itself_is_kept(workshop: Workshop) -> None:
    drv = workshop.make("narcissus", "echo $out > $out")
    assert workshop.build(drv).result.success
    assert workshop.info(drv.out).references == {drv.out}


def test_outputs_that_refer_to_each_other_in_a_cycle_are_refused(workshop: Workshop) -> None:
    drv = workshop.make("cycle", "echo $dev > $out; echo $out > $dev", outputs=("out", "dev"))
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.OUTPUT_REJECTED
    assert "cycle detected in build of" in run.result.message
    assert workshop.leftovers() == []


def test_deriver_and_trust_are_registered(workshop: Workshop) -> None:
    drv = workshop.make("known")
    assert workshop.build(drv).result.success
    info = workshop.info(drv.out)
    assert info.deriver == drv.path
    assert info.ultimate
    assert info.content_address is None


@pytest.mark.nix
@pytest.mark.parametrize(
    "script",
    [
        "echo hello > $out",
        "ln -s /nowhere $out",
        "mkdir -p $out/a/b; echo x > $out/a/b/c; ln -s ../a $out/a/d; echo $out > $out/self",
        "mkdir $out",
        "echo '#!/bin/sh' > $out; chmod +x $out",
    ],
    ids=["file", "link", "tree", "empty", "program"],
)
def test_facts_are_those_that_stock_nix_computes(workshop: Workshop, script: str) -> None:
    drv = workshop.make("judged", script)
    assert workshop.build(drv).result.success
    path, info = workshop.render(drv.out), workshop.info(drv.out)
    dump = subprocess.run(
        ["nix-store", "--dump", workshop.real(drv.out)], capture_output=True, check=True
    ).stdout
    assert info.nar_size == len(dump)
    assert info.nar_hash == sha256(dump)
    hashed = subprocess.run(
        ["nix-hash", "--type", "sha256", "--base32", workshop.real(drv.out)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        nix(workshop, "nix-store", "--query", "--hash", path) == f"sha256:{hashed.stdout}".strip()
    )
    references = nix(workshop, "nix-store", "--query", "--references", path).split()
    assert references == [workshop.render(path) for path in sorted(info.references)]
    assert nix(workshop, "nix-store", "--query", "--deriver", path) == drv.text
    assert nix(workshop, "nix-store", "--verify-path", path) == ""


@pytest.mark.parametrize(
    ("name", "script", "text"),
    [
        ("missing", "true", "failed to produce output path for output 'out' at"),
        ("writable", "echo x > $out; chmod 666 $out", "suspicious ownership or permission on"),
        ("group", "mkdir $out; chmod 775 $out", "suspicious ownership or permission on"),
        ("fifo", "mkdir $out; mkfifo $out/pipe", "pipe"),
        ("bare-fifo", "mkfifo -m 644 $out", "fifo"),
    ],
)
def test_an_unacceptable_output_is_refused(
    workshop: Workshop, name: str, script: str, text: str
) -> None:
    drv = workshop.make(name, script)
    run = workshop.build(drv)
    assert run.result.cause is FailureCause.OUTPUT
    assert exit_status(run.results) == 1
    assert text in run.result.message
    assert not workshop.is_valid(drv.out)
    assert workshop.leftovers() == []


def test_a_socket_in_an_output_is_refused(workshop: Workshop) -> None:
    """Also: what a sandbox that shows host directories leaves is copied before it is looked at."""
    code = (
        "import os, socket; os.mkdir(os.environ['out']); os.chdir(os.environ['out']);"
        "socket.socket(socket.AF_UNIX).bind('socket')"
    )
    drv = workshop.make("socket", builder=b"/usr/bin/python3", args=(b"-c", code.encode()))
    run = workshop.build(drv, sandbox_paths=HOST_PROGRAMS)
    assert run.result.cause is FailureCause.OUTPUT, run
    assert "socket" in run.result.message
    assert workshop.leftovers() == []


@pytest.mark.parametrize(
    "attempt",
    [
        "mknod $out/null c 1 3",
        "chmod u+s $out/file",
        "chmod 2755 $out/file",
        "chown 0 $out/file",
        "chown 1:1 $out/file",
    ],
)
def test_a_builder_can_not_make(workshop: Workshop, attempt: str) -> None:
    """Devices, setuid bits and files of others are refused by the kernel, not only afterwards."""
    drv = workshop.make(
        "attempt", f"mkdir $out; touch $out/file; if {attempt}; then exit 9; fi; echo no > $out/no"
    )
    run = workshop.build(drv)
    assert run.result.success, run.result
    assert (workshop.real(drv.out) / "no").exists()
    assert stat.S_IMODE((workshop.real(drv.out) / "file").stat().st_mode) == 0o444


def test_an_unmade_output_of_several_registers_none(workshop: Workshop) -> None:
    drv = workshop.make("half", "echo x > $out", outputs=("out", "dev"))
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.OUTPUT_REJECTED
    assert "for output 'dev' at" in run.result.message
    assert not workshop.is_valid(drv.out)
    assert workshop.leftovers() == []


# What an output may refer to, and which of its paths are named when it does more.
REFERENCE_CHECKS: list[tuple[str, str, str]] = [
    ("allowedReferences", "", "near"),
    ("allowedReferences", "out", "near"),
    ("allowedRequisites", "near out", "far"),
    ("allowedRequisites", "far out", "near"),
    ("disallowedReferences", "near", "near"),
    ("disallowedRequisites", "far", "far"),
    ("disallowedRequisites", "far near", "far near"),
]


@pytest.mark.parametrize("is_structured", [False, True], ids=["legacy", "structured"])
@pytest.mark.parametrize(("check", "names", "refused"), REFERENCE_CHECKS)
def test_a_reference_that_is_not_allowed_is_refused(
    workshop: Workshop, check: str, names: str, refused: str, is_structured: bool
) -> None:
    """``checked`` refers to ``near``, and that to ``far``."""
    far = workshop.make("far")
    near = workshop.make("near", "echo $far_out > $out", inputs=[far])
    paths = {"far": workshop.render(far.out), "near": workshop.render(near.out)}
    values = [paths.get(name, name) for name in names.split()]
    checks = (
        structured(outputChecks={"out": {check: values}})
        if is_structured
        else {check: " ".join(values)}
    )
    drv = workshop.make(
        "checked", f"{FIND_OUT}; echo {paths['near']} > $out", inputs=[near], env=checks
    )
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.OUTPUT_REJECTED
    listing = "".join(f"\n  {path}" for path in sorted(paths[name] for name in refused.split()))
    assert run.result.message == (
        f"output '{workshop.render(drv.out)}' is not allowed to refer to the following paths:"
        + listing
    )
    assert exit_status(run.results) == 1
    assert not workshop.is_valid(drv.out)
    assert workshop.leftovers() == []


@pytest.mark.parametrize(
    ("checks", "text"),
    [
        ({"maxSize": 119}, "path '{out}' is too large at 120 bytes; limit is 119 bytes"),
        ({"maxClosureSize": 1}, "closure of path '{out}' is too large at 120 bytes; limit is 1"),
        (
            {"allowedReferences": ["nonsense"]},
            "derivation '{drv}' output check for 'out' contains output name 'nonsense', but this "
            "is not a valid output of this derivation. (Valid outputs are [out].)",
        ),
    ],
)
def test_limits_and_errors_of_checks_have_nix_s_text(
    workshop: Workshop, checks: dict[str, Any], text: str
) -> None:
    drv = workshop.make(
        "limited", f"{FIND_OUT}; echo x > $out", env=structured(outputChecks={"out": checks})
    )
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.OUTPUT_REJECTED
    assert text.format(out=workshop.render(drv.out), drv=drv.text) in run.result.message


def test_an_output_that_keeps_its_checks_is_taken(workshop: Workshop) -> None:
    near = workshop.make("near")
    path = workshop.render(near.out)
    checks = {"allowedRequisites": [path, "out"], "maxSize": 1000}
    drv = workshop.make(
        "kept",
        f"{FIND_OUT}; echo {path} > $out",
        inputs=[near],
        env=structured(outputChecks={"out": checks}),
    )
    assert workshop.build(drv).result.success
    assert workshop.info(drv.out).references == {near.out}


def test_references_of_a_discarding_output_do_not_count(workshop: Workshop) -> None:
    near = workshop.make("near")
    drv = workshop.make(
        "oblivious",
        f"{FIND_OUT}; echo {workshop.render(near.out)} $out > $out",
        inputs=[near],
        env=structured(unsafeDiscardReferences={"out": True}),
    )
    assert workshop.build(drv).result.success
    assert workshop.info(drv.out).references == frozenset()


# Contents, ingestion method, and how a builder makes them.
FIXED: list[tuple[IngestionMethod, str]] = [
    (IngestionMethod.FLAT, "echo -n fixed > $out"),
    (IngestionMethod.NAR, "echo -n fixed > $out"),
]


def promised(method: IngestionMethod, content: bytes) -> bytes:
    """The bytes whose hash a fixed output of a plain file promises."""
    if method is IngestionMethod.FLAT:
        return content
    parts = (b"nix-archive-1", b"(", b"type", b"regular", b"contents", content, b")")
    return b"".join(
        len(part).to_bytes(8, "little") + part + bytes(-len(part) % 8) for part in parts
    )


@pytest.mark.parametrize(("method", "script"), FIXED)
def test_a_fixed_output_with_its_hash_is_registered(
    workshop: Workshop, method: IngestionMethod, script: str
) -> None:
    drv = workshop.make("right", script, outputs={"out": fixed(promised(method, b"fixed"), method)})
    assert workshop.build(drv).result.status is BuildStatus.BUILT
    info = workshop.info(drv.out)
    assert info.content_address is not None
    assert info.content_address.startswith(f"fixed:{method.value}sha256:")
    assert workshop.real(drv.out).read_bytes() == b"fixed"


@pytest.mark.parametrize(("method", "script"), FIXED)
def test_a_fixed_output_with_another_hash_is_kept_under_its_true_path(
    workshop: Workshop, method: IngestionMethod, script: str
) -> None:
    drv = workshop.make("wrong", script, outputs={"out": fixed(b"something else", method)})
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.HASH_MISMATCH
    assert exit_status(run.results) == 102
    actual = sha256(promised(method, b"fixed"))
    assert run.result.message == (
        f"hash mismatch in fixed-output derivation '{drv.text}':\n"
        f"  specified: {sha256(b'something else').sri}\n     got:    {actual.sri}"
    )
    true_path = make_fixed_output_path(workshop.location.store_dir, "wrong", method, actual)
    assert workshop.is_valid(true_path)
    assert workshop.real(true_path).read_bytes() == b"fixed"
    assert not workshop.is_valid(drv.out)
    assert workshop.leftovers() == []


@pytest.mark.parametrize("script", ["mkdir $out", "echo x > $out; chmod +x $out", "ln -s x $out"])
def test_a_flat_fixed_output_must_be_a_plain_file(workshop: Workshop, script: str) -> None:
    drv = workshop.make("flat", script, outputs={"out": fixed(b"")})
    run = workshop.build(drv)
    assert run.result.status is BuildStatus.OUTPUT_REJECTED
    assert "should be a non-executable regular file" in run.result.message


def test_a_fixed_output_must_not_refer_to_the_store(workshop: Workshop) -> None:
    near = workshop.make("near")
    content = f"{workshop.render(near.out)}\n".encode()
    drv = workshop.make(
        "referring", "echo $near_out > $out", inputs=[near], outputs={"out": fixed(content)}
    )
    run = workshop.build(drv)
    assert run.result.cause is FailureCause.OUTPUT
    assert "is not allowed to refer to other store paths" in run.result.message
    assert not workshop.is_valid(drv.out)
    assert workshop.leftovers() == []
