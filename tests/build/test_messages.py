"""Refusals and failures in the words of Nix 2.34.8."""

from __future__ import annotations

import pytest

from executor.build.messages import (
    cannot_build,
    impure_host_dep_refusal,
    local_build_refusal,
    no_chroot_refusal,
)

DRV = "/nix/store/dddddddddddddddddddddddddddddddd-x.drv"


def refusal(
    system: str = "x86_64-linux",
    features: tuple[str, ...] = (),
    *,
    is_builtin: bool = False,
    max_jobs: int = 1,
) -> str | None:
    return local_build_refusal(
        DRV,
        required_system=system,
        required_features=features,
        system="x86_64-linux",
        extra_platforms=("i686-linux",),
        system_features=("kvm", "big-parallel"),
        is_builtin=is_builtin,
        max_jobs=max_jobs,
    )


def test_what_can_be_built_here() -> None:
    assert refusal() is None
    assert refusal("i686-linux", ("kvm",)) is None
    assert refusal("builtin", is_builtin=True) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            refusal("riscv64-linux"),
            "\nReason: platform mismatch\nRequired system: 'riscv64-linux'"
            "\nCurrent system: 'x86_64-linux'",
        ),
        (
            refusal(features=("zeta", "alpha", "kvm")),
            "\nReason: missing system features\nRequired features: {alpha, kvm, zeta}"
            "\nAvailable features: {big-parallel, kvm}",
        ),
        (
            refusal("riscv64-linux", ("alpha",)),
            "\nReason: platform mismatch\nRequired system: 'riscv64-linux'"
            "\nCurrent system: 'x86_64-linux'"
            "\nReason: missing system features\nRequired features: {alpha}"
            "\nAvailable features: {big-parallel, kvm}",
        ),
        (
            refusal(max_jobs=0),
            "\nReason: local builds are disabled (max-jobs = 0)\nHint: set 'max-jobs' to a "
            "non-zero value to enable local builds, or configure remote builders via 'builders'",
        ),
    ],
)
def test_what_cannot_be_built_here(text: str | None, expected: str) -> None:
    assert text == f"Cannot build '{DRV}'.{expected}"


def test_no_chroot() -> None:
    assert no_chroot_refusal(DRV) == (
        f"derivation '{DRV}' has '__noChroot' set, but that's not allowed when 'sandbox' is 'true'"
    )


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        ([], []),
        (["/a"], ["/a"]),
        (["/a/b", "/c"], ["/a/", "/c"]),
        (["/a/./b/../c"], ["/a"]),
        (["/anything"], ["/"]),
    ],
)
def test_allowed_host_paths(wanted: list[str], allowed: list[str]) -> None:
    assert impure_host_dep_refusal(DRV, wanted, allowed) is None


@pytest.mark.parametrize(
    ("wanted", "allowed", "named"),
    [
        (["/etc/shadow", "/b"], [], "/b"),
        (["/ab"], ["/a"], "/ab"),
        (["/a/../etc"], ["/a"], "/a/../etc"),
        (["//etc"], ["/a"], "//etc"),
        (["a"], ["/"], "a"),
    ],
)
def test_refused_host_paths(wanted: list[str], allowed: list[str], named: str) -> None:
    assert impure_host_dep_refusal(DRV, wanted, allowed) == (
        f"derivation '{DRV}' requested impure path '{named}', "
        "but it was not in allowed-impure-host-deps"
    )


def test_cannot_build() -> None:
    outputs = ["/nix/store/b-x", "/nix/store/a-x-dev"]
    text = cannot_build(DRV, "builder failed with exit code 3", known_outputs=outputs)
    assert text == (
        f"Cannot build '{DRV}'.\nReason: builder failed with exit code 3."
        "\nOutput paths:\n  /nix/store/a-x-dev\n  /nix/store/b-x"
    )
    assert cannot_build(DRV, "it broke") == f"Cannot build '{DRV}'.\nReason: it broke."


def test_of_many_failed_inputs_some_are_named() -> None:
    names = [f"/nix/store/{number}.drv" for number in range(12)]
    text = cannot_build(DRV, "12 dependencies failed", failed_inputs=names)
    assert text.splitlines()[2:] == [
        "Failed:",
        *(f"  {name}" for name in names[:10]),
        "  and 2 more",
    ]
