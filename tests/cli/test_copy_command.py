"""``executor copy``: binary caches that stock Nix reads, and those that it wrote."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from tests.build.conftest import Drv, Workshop
from tests.build.conftest import workshop as workshop

pytestmark = pytest.mark.root

COMPRESSIONS = ["xz", "zstd", "bzip2", "br", "gzip", "none"]


@pytest.fixture
def key(tmp_path: Path) -> tuple[str, str]:
    """A key pair that Nix made: the file of the secret one, and the public one."""
    secret, public = tmp_path / "secret", tmp_path / "public"
    _run("nix-store", "--generate-binary-cache-key", "test-1", str(secret), str(public))
    return str(secret), public.read_text().strip()


def _run(*command: str) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "NIX_CONF_DIR": "/nonexistent",
        "NIX_CONFIG": "experimental-features = nix-command\nsubstituters =\n",
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _copy_by_nix(source: str, target: str, path: str, *options: str) -> None:
    """Without --to or --from, Nix would mean its own store."""
    ends = [] if source == "" else ["--from", source]
    _run("nix", "copy", *ends, "--to", target, *options, path)


@pytest.fixture
def built(workshop: Workshop) -> Drv:
    input_ = workshop.make("input", "mkdir $out; echo deep > $out/file; ln -s file $out/link")
    drv = workshop.make("top", "echo $input_out > $out; chmod +x $out", inputs=[input_])
    assert workshop.build(drv).result.success
    return drv


@pytest.mark.nix
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_stock_nix_reads_what_we_write(
    workshop: Workshop, built: Drv, key: tuple[str, str], tmp_path: Path, compression: str
) -> None:
    out, cache = workshop.render(built.out), f"file://{tmp_path}/cache"
    done = workshop.cli(
        "copy", "--to", f"{cache}?compression={compression}", "--secret-key-files", key[0], out
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("copying path") == 2
    trust = ("--option", "trusted-public-keys", key[1])
    _copy_by_nix(cache, f"{tmp_path}/store", out, *trust)
    copied = tmp_path / "store" / out[1:]
    assert copied.read_bytes() == workshop.real(built.out).read_bytes()
    _run("nix-store", "--store", f"{tmp_path}/store", "--verify", "--check-contents")


@pytest.mark.nix
@pytest.mark.parametrize("compression", ["xz", "zstd", "bzip2", "br", "none"])
def test_we_read_what_stock_nix_writes(
    workshop: Workshop, built: Drv, key: tuple[str, str], tmp_path: Path, compression: str
) -> None:
    out, cache = workshop.render(built.out), f"file://{tmp_path}/cache"
    target = f"{cache}?compression={compression}&secret-key={key[0]}"
    _run("nix", "copy", "--store", str(workshop.root), "--to", target, out)
    (tmp_path / "near").mkdir()
    near = Workshop(tmp_path / "near")
    done = near.cli("copy", "--from", cache, "--trusted-public-keys", key[1], out)
    assert done.returncode == 0, done.stderr
    assert near.info(built.out).nar_hash == workshop.info(built.out).nar_hash
    refused = Workshop(tmp_path / "near" / "other")
    refused.directory.mkdir()
    done = refused.cli("copy", "--from", cache, out)
    assert done.returncode == 1
    assert "not signed by any of the keys" in done.stderr
    assert refused.cli("copy", "--from", cache, "--no-check-sigs", out).returncode == 0


@pytest.mark.nix
def test_descriptions_are_those_of_stock_nix(
    workshop: Workshop, built: Drv, key: tuple[str, str], tmp_path: Path
) -> None:
    """Byte for byte, signatures included, where the archive is the same."""
    out = workshop.render(built.out)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    plain = f"compression=none&secret-key={key[0]}"
    assert workshop.cli("copy", "--to", f"file://{ours}?{plain}", out).returncode == 0
    _run("nix", "copy", "--store", str(workshop.root), "--to", f"file://{theirs}?{plain}", out)
    files = sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file())
    for file in files:
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file


def test_what_is_there_already_is_not_copied_again(
    workshop: Workshop, built: Drv, tmp_path: Path
) -> None:
    out, cache = workshop.render(built.out), f"file://{tmp_path}/cache"
    assert "2 paths copied" in workshop.cli("copy", "--to", cache, out).stderr
    assert "0 paths copied" in workshop.cli("copy", "--to", cache, out).stderr


def test_references_have_to_be_in_the_cache(workshop: Workshop, built: Drv, tmp_path: Path) -> None:
    out, cache = workshop.render(built.out), f"file://{tmp_path}/cache"
    done = workshop.cli("copy", "--to", cache, "--no-recursive", out)
    assert done.returncode == 1
    assert "because the reference '/nix/store/" in done.stderr
    assert not list((tmp_path / "cache").glob("*.narinfo"))


def test_contents_that_changed_are_not_copied(
    workshop: Workshop, built: Drv, tmp_path: Path
) -> None:
    workshop.real(built.out).chmod(0o644)
    workshop.real(built.out).write_text("changed\n")
    done = workshop.cli("copy", "--to", f"file://{tmp_path}/cache", workshop.render(built.out))
    assert done.returncode == 1
    assert "was modified; it is not copied" in done.stderr
    assert not (tmp_path / f"cache/{built.out.digest}.narinfo").exists()
    assert not [path for path in (tmp_path / "cache/nar").iterdir() if path.name[0] == "."]


def test_stores_are_substituters_too(workshop: Workshop, built: Drv, tmp_path: Path) -> None:
    (tmp_path / "near").mkdir()
    near = Workshop(tmp_path / "near")
    out = workshop.render(built.out)
    done = near.cli("copy", "--from", str(workshop.root), "--no-check-sigs", out)
    assert done.returncode == 0, done.stderr
    assert near.info(built.out).references == workshop.info(built.out).references
    back = near.cli("copy", "--to", f"{tmp_path}/third", "--no-check-sigs", out)
    assert back.returncode == 0, back.stderr
    assert (tmp_path / "third" / out[1:]).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say where to copy to, or where from"),
        (("--to", "file:///a", "--from", "file:///b"), "say where to copy to, or where from"),
        (("--to", "https://127.0.0.1:1/"), "can't be written to"),
        (("--to", "s3://bucket"), "is not supported"),
        (("--to", "file:///tmp/x?compression=zpaq"), "unknown compression 'zpaq'"),
        (("--from", "nonsense"), "is not supported"),
    ],
)
def test_wrong_use_is_told(
    workshop: Workshop, built: Drv, arguments: tuple[str, ...], message: str
) -> None:
    done = workshop.cli("copy", *arguments, workshop.render(built.out))
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize("owner", ["nobody", "root"])
def test_a_link_in_a_cache_leads_elsewhere_only_if_root_made_it(
    workshop: Workshop, built: Drv, tmp_path: Path, owner: str
) -> None:
    """Whoever else may write there could send what root writes to any directory."""
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    cache.mkdir()
    elsewhere.mkdir()
    (cache / "nar").symlink_to(elsewhere)
    os.chown(cache / "nar", pwd.getpwnam(owner).pw_uid, -1, follow_symlinks=False)
    done = workshop.cli("copy", "--to", f"file://{cache}", workshop.render(built.out))
    if owner == "root":
        assert done.returncode == 0, done.stderr
        assert len(list(elsewhere.iterdir())) == 2
    else:
        assert done.returncode == 1
        assert f"'nar' in 'file://{cache}' is another user's link" in done.stderr
        assert not list(elsewhere.iterdir())
