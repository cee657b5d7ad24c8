"""Store references and the environment variables that change the default ones."""

import re

import pytest

from executor.errors import ConfigError
from executor.store.location import parse_store_url

_CHROOT = ("/nix/store", "/x/nix/store", "/x/nix/var/nix", "/x/nix/var/log/nix")


def _dirs(text: str | None, **environ: str) -> tuple[str, str, str, str]:
    location = parse_store_url(text, environ, working_directory="/work/here")
    return (
        location.store_dir.path,
        location.real_store_dir,
        location.state_dir,
        location.log_dir,
    )


@pytest.mark.parametrize("text", [None, "", "auto", "local", "local://", "local?", "?trusted=1"])
def test_default_store(text: str | None) -> None:
    assert _dirs(text) == ("/nix/store", "/nix/store", "/nix/var/nix", "/nix/var/log/nix")
    assert parse_store_url(text, {}).is_default_layout


@pytest.mark.parametrize(
    "text", ["/x", "/x/", "/x/.", "//x", "local?root=/x", "local?root=%2Fx", "auto?root=/y/../x"]
)
def test_chroot_store(text: str) -> None:
    assert _dirs(text) == _CHROOT
    assert parse_store_url(text, {}).root_dir == "/x"
    assert not parse_store_url(text, {}).is_default_layout


def test_relative_directory_needs_a_slash() -> None:
    assert _dirs("./rel")[1] == "/work/here/rel/nix/store"
    assert _dirs("a/b")[1] == "/work/here/a/b/nix/store"
    with pytest.raises(ConfigError, match="cannot parse store 'rel'"):
        parse_store_url("rel", {})


def test_each_directory_by_itself() -> None:
    text = "local?store=/s&real=/r&state=/t&log=/l&read-only=true&build-dir=/b&require-sigs=no"
    assert _dirs(text) == ("/s", "/r", "/t", "/l")
    location = parse_store_url(text, {})
    assert location.read_only
    assert location.build_dir == "/b"
    assert location.require_signatures is False


def test_parameters_win_over_the_root() -> None:
    assert _dirs("/x?state=/t&store=/s") == ("/s", "/x/nix/store", "/t", "/x/nix/var/log/nix")


def test_environment() -> None:
    changed = {"NIX_STORE_DIR": "/s/", "NIX_STATE_DIR": "/t", "NIX_LOG_DIR": "/l"}
    assert _dirs(None, **changed) == ("/s", "/s", "/t", "/l")
    assert _dirs("/x", **changed) == ("/s", *_CHROOT[1:])
    assert _dirs("local?store=/p", **changed)[0] == "/p"
    assert _dirs(None, NIX_REMOTE="/x") == _CHROOT
    assert _dirs("auto", NIX_REMOTE="/x")[1] == "/nix/store"
    assert parse_store_url(None, {}).conf_dir == "/etc/nix"
    assert parse_store_url(None, {"NIX_CONF_DIR": "/c"}).conf_dir == "/c"
    assert parse_store_url(None, {"NIX_IGNORE_SYMLINK_STORE": "1"}).allow_symlinked_store


def test_unknown_parameters_warn() -> None:
    location = parse_store_url("local?frobnicate=1&priority=3&dangling&root=/x", {})
    assert location.real_store_dir == "/x/nix/store"
    assert len(location.warnings) == 2
    assert "unknown setting 'frobnicate'" in location.warnings
    assert "'dangling'" in "".join(location.warnings)


def test_first_of_two_values_counts() -> None:
    assert _dirs("local?root=/x&root=/y") == _CHROOT


def test_bytes_that_are_no_text() -> None:
    real = parse_store_url("local?root=/%FF", {}).real_store_dir
    assert real.encode("utf-8", "surrogateescape") == b"/\xff/nix/store"


@pytest.mark.parametrize(
    "text",
    [
        "daemon",
        "daemon?max-connections=1",
        "unix://",
        "unix:///run/x",
        "ssh://host",
        "ssh-ng://host",
        "https://cache.example.org",
        "s3://bucket",
        "file:///x",
        "local-overlay://",
        "dummy://",
    ],
)
def test_other_stores_are_named_as_unsupported(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"store '{text}' is not a local store")):
        parse_store_url(text, {})


@pytest.mark.parametrize(
    "text",
    [
        "local?root=x",
        "local?store=",
        "local?state=%zz",
        "local?read-only=maybe",
        "frob://x",
        "local?priority=high",
        "local?root=/a%00b",
        "local?root=/x%2",
    ],
)
def test_malformed(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_store_url(text, {})


def test_relative_environment_is_an_error() -> None:
    with pytest.raises(ConfigError, match="NIX_STORE_DIR"):
        parse_store_url(None, {"NIX_STORE_DIR": "here"})
