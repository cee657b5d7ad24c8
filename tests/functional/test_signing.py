"""Signatures of what is built. Upstream: signing; the judge of signatures is stock Nix."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.build.conftest import Workshop

pytestmark = [pytest.mark.root, pytest.mark.nix]


def key_pair(directory: Path, name: str) -> tuple[str, str]:
    """A secret key's file, and the public key."""
    secret, public = directory / f"{name}.secret", directory / f"{name}.public"
    command = ["nix-store", "--generate-binary-cache-key", name, str(secret), str(public)]
    subprocess.run(command, check=True, timeout=60)
    return str(secret), public.read_text().strip()


def is_verified(workshop: Workshop, path: str, needed: int, *keys: str) -> bool:
    """Whether stock Nix finds ``needed`` good signatures by ``keys``."""
    command = ["nix", "--extra-experimental-features", "nix-command", "store", "verify"]
    options = ["--sigs-needed", str(needed), "--trusted-public-keys", " ".join(keys)]
    done = subprocess.run(
        [*command, "--store", str(workshop.root), *options, path],
        env={**os.environ, "NIX_REMOTE": ""},
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode == 0


def test_outputs_are_signed_with_every_key(workshop: Workshop) -> None:
    """The references of a path are signed, too."""
    first, second = (
        key_pair(workshop.directory, f"cache{number}.example.org") for number in (1, 2)
    )
    base = workshop.make("base")
    top = workshop.make(
        "top", "echo $base_out > $out; echo x > $dev", inputs=[base], outputs=("out", "dev")
    )
    done = workshop.cli(
        "build", top.text, "--option", "secret-key-files", f"{first[0]} {second[0]}"
    )
    assert done.returncode == 0, done.stderr
    for path in (base.out, *top.outputs.values()):
        info = workshop.info(path)
        assert info.ultimate
        assert [text.split(":")[0] for text in sorted(info.signatures)] == [
            "cache1.example.org",
            "cache2.example.org",
        ]
        assert is_verified(workshop, workshop.render(path), 2, first[1], second[1])
        assert not is_verified(workshop, workshop.render(path), 2, first[1])


def test_without_keys_nothing_is_signed(workshop: Workshop) -> None:
    drv = workshop.make("plain")
    assert workshop.cli("build", drv.text).returncode == 0
    info = workshop.info(drv.out)
    assert info.ultimate
    assert not info.signatures
    assert not is_verified(workshop, workshop.render(drv.out), 1)


def test_a_key_that_can_not_be_read_is_an_error_before_anything_is_built(
    workshop: Workshop,
) -> None:
    drv = workshop.make("plain")
    done = workshop.cli("build", drv.text, "--option", "secret-key-files", "/nonexistent/key")
    assert done.returncode == 1
    assert done.stderr.endswith(
        "error: can't read the secret key file '/nonexistent/key': No such file or directory\n"
    )
    assert not workshop.is_valid(drv.out)
