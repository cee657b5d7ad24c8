"""What is going to happen, as people read it."""

from __future__ import annotations

import pytest

from executor.build.events import GraphPlanned
from executor.cli.plan_text import plan_lines, render_size
from executor.formats.store_path import StoreDir, StorePath

A, B, C = (StorePath(digit * 32, name) for digit, name in zip("abc", "zyx", strict=True))


def test_lines_are_nix_s() -> None:
    plan = GraphPlanned(
        will_build=(A, B), will_substitute=(A, C), download_size=1, nar_size=1 << 30, unknown=(C,)
    )
    assert list(plan_lines(plan, StoreDir().render)) == [
        "these 2 derivations will be built:",
        f"  /nix/store/{A}",
        f"  /nix/store/{B}",
        "these 2 paths will be fetched (0.0 KiB download, 1.0 GiB unpacked):",
        f"  /nix/store/{C}",
        f"  /nix/store/{A}",
        "don't know how to build these paths:",
        f"  /nix/store/{C}",
    ]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0 KiB"), (100, "0.1 KiB"), (1 << 20, "1.0 MiB"), ((1 << 40) * 1500, "1.5 PiB")],
)
def test_sizes(size: int, text: str) -> None:
    assert render_size(size) == text
