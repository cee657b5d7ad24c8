"""Configuration: nix.conf and what it includes, NIX_CONFIG, and the command line over all."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from executor.config import LoadedSettings, Settings, load_settings, parse_sandbox_path
from executor.errors import ConfigError
from executor.host import Host
from executor.setting_names import ALIASES, HARMLESS, NIX_ONLY
from executor.settings import SandboxPath

HOST = Host(
    system="x86_64-linux",
    extra_platforms=frozenset({"i686-linux"}),
    features=frozenset({"kvm"}),
    shell="/bin/busybox",
    certificates="/etc/certificates",
)


def load(
    tmp_path: Path,
    text: str = "",
    *,
    overrides: Iterable[tuple[str, str]] = (),
    environ: Mapping[str, str] | None = None,
) -> LoadedSettings:
    """Load with `text` as nix.conf and nothing else of this machine."""
    (tmp_path / "nix.conf").write_text(text)
    base = {"NIX_CONF_DIR": str(tmp_path), "NIX_USER_CONF_FILES": ""}
    return load_settings(environ={**base, **(environ or {})}, overrides=overrides, host=HOST)


def settings(tmp_path: Path, text: str = "", **more: str) -> Settings:
    loaded = load(tmp_path, text, environ=more)
    assert loaded.warnings == ()
    return loaded.settings


def test_without_a_file_the_machine_decides(tmp_path: Path) -> None:
    environ = {"NIX_CONF_DIR": str(tmp_path), "NIX_USER_CONF_FILES": ""}
    loaded = load_settings(environ=environ, host=HOST)
    assert loaded.warnings == ()
    assert loaded.settings == Settings(
        system="x86_64-linux",
        extra_platforms=HOST.extra_platforms,
        system_features=HOST.features,
        sandbox_paths=(SandboxPath(target="/bin/sh", source="/bin/busybox", read_only=True),),
        ssl_cert_file="/etc/certificates",
        netrc_file=f"{tmp_path}/netrc",
    )


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        pytest.param("cores = 4", "cores", 4, id="number"),
        pytest.param("max-build-log-size = 3K", "max_build_log_size", 3 << 10, id="kilo"),
        pytest.param("max-build-log-size = 3m", "max_build_log_size", 3 << 20, id="mega"),
        pytest.param("max-build-log-size = 3G", "max_build_log_size", 3 << 30, id="giga"),
        pytest.param("max-build-log-size = 3T", "max_build_log_size", 3 << 40, id="tera"),
        pytest.param("keep-failed = true", "keep_failed", True, id="true"),
        pytest.param("keep-failed = yes", "keep_failed", True, id="yes"),
        pytest.param("keep-failed = 1", "keep_failed", True, id="1"),
        pytest.param("keep-build-log = false", "keep_build_log", False, id="false"),
        pytest.param("keep-build-log = no", "keep_build_log", False, id="no"),
        pytest.param("keep-build-log = 0", "keep_build_log", False, id="0"),
        pytest.param("build-dir = /var/b", "build_dir", "/var/b", id="text"),
        pytest.param("build-dir =", "build_dir", "", id="nothing"),
        pytest.param("system-features =", "system_features", frozenset(), id="empty list"),
        pytest.param(
            "system-features = a  b\ta", "system_features", frozenset({"a", "b"}), id="list"
        ),
        pytest.param("impure-env = A=1 B=x=y", "impure_env", {"A": "1", "B": "x=y"}, id="pairs"),
        pytest.param("hashed-mirrors = b a b", "hashed_mirrors", ("b", "a", "b"), id="in order"),
        pytest.param("  cores   =   4  ", "cores", 4, id="white space"),
        pytest.param("\tcores\t=\t4\r", "cores", 4, id="tabs and carriage return"),
        pytest.param("cores = 4 # not 5", "cores", 4, id="comment behind"),
        pytest.param("cores = 4\n#cores = 5", "cores", 4, id="comment line"),
        pytest.param("#\n\n   \ncores = 4\n\n", "cores", 4, id="empty lines"),
        pytest.param("cores = 4\ncores = 5", "cores", 5, id="last one wins"),
        pytest.param("build-cores = 4", "cores", 4, id="old name"),
        pytest.param("build-cores = 4\ncores = 5", "cores", 5, id="old name, then new"),
        pytest.param("cores = 5\nbuild-cores = 4", "cores", 4, id="new name, then old"),
        pytest.param(
            "extra-system-features = a", "system_features", frozenset({"kvm", "a"}), id="extra"
        ),
        pytest.param(
            "system-features = a\nextra-system-features = b\nextra-system-features = c",
            "system_features",
            frozenset({"a", "b", "c"}),
            id="extra twice",
        ),
        pytest.param(
            "extra-system-features = b\nsystem-features = a",
            "system_features",
            frozenset({"a"}),
            id="plain after extra",
        ),
        pytest.param(
            "impure-env = A=1 B=2\nextra-impure-env = B=3",
            "impure_env",
            {"A": "1", "B": "3"},
            id="extra pairs",
        ),
        pytest.param(
            "extra-platforms = a", "extra_platforms", frozenset({"a"}), id="extra in the name"
        ),
        pytest.param(
            "extra-extra-platforms = a",
            "extra_platforms",
            frozenset({"i686-linux", "a"}),
            id="extra before extra in the name",
        ),
    ],
)
def test_values_are_read_by_their_type(
    tmp_path: Path, text: str, attribute: str, value: object
) -> None:
    assert getattr(settings(tmp_path, text), attribute) == value


def test_extra_paths_stand_behind_the_others(tmp_path: Path) -> None:
    loaded = settings(tmp_path, "extra-sandbox-paths = /a\nextra-build-chroot-dirs = /b=/c?")
    assert [path.target for path in loaded.sandbox_paths] == ["/bin/sh", "/a", "/b"]
    assert settings(tmp_path, "sandbox-paths =").sandbox_paths == ()


def test_max_jobs_may_be_left_to_the_machine(tmp_path: Path) -> None:
    assert settings(tmp_path, "max-jobs = auto").max_jobs == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_old_names_are_known(tmp_path: Path, alias: str) -> None:
    name = ALIASES[alias]
    known = {*NIX_ONLY, *HARMLESS, *(name.replace("_", "-") for name in Settings.__slots__)}
    assert name in known
    value = "true" if name in HARMLESS else "1" if "paths" not in name else "/x"
    assert load(tmp_path, f"{alias} = {value}").warnings == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("cores", "syntax error", id="name alone"),
        pytest.param("cores 4", "syntax error", id="no equals sign"),
        pytest.param("cores=4", "syntax error", id="no white space"),
        pytest.param("= 4", "syntax error", id="no name"),
        pytest.param("cores = x", "setting 'cores': 'x' is not a number", id="no number"),
        pytest.param("cores = -1", "setting 'cores': '-1' is not a number", id="below zero"),
        pytest.param("cores = ٣", "setting 'cores': '٣' is not a number", id="foreign digit"),
        pytest.param("cores =", "setting 'cores': '' is not a number", id="no value"),
        pytest.param("cores = auto", "'auto' is not a number", id="auto elsewhere"),
        pytest.param("build-cores = 4X", "setting 'cores': '4X'", id="unknown unit"),
        pytest.param("keep-failed = maybe", "'maybe' is not a Boolean", id="no Boolean"),
        pytest.param("keep-failed = TRUE", "'TRUE' is not a Boolean", id="upper case"),
        pytest.param("impure-env = A", "'A' is not of the form name=value", id="no pair"),
        pytest.param("sandbox-paths = x", "'x' is not absolute", id="relative path"),
        pytest.param("sandbox-paths = /..", "escapes the sandbox", id="way up"),
        pytest.param("include", "'include' needs one file name", id="include nothing"),
        pytest.param("include a b", "'include' needs one file name", id="include two"),
        pytest.param("!include", "'!include' needs one file name", id="maybe include nothing"),
        pytest.param("include missing", "can't read '.*/missing': No such file", id="missing"),
    ],
)
def test_errors_say_where_they_stand(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"nix.conf:2: .*{message}"):
        load(tmp_path, f"# comment\n{line}\n")


def test_included_files_stand_where_they_are_included(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.conf").write_text("cores = 1\ninclude two.conf\ntimeout = 1\n")
    (tmp_path / "sub" / "two.conf").write_text("timeout = 2\nlog-lines = 2\n")
    text = "cores = 9\ninclude sub/one.conf\n!include sub/missing.conf\nlog-lines = 9\n"
    loaded = settings(tmp_path, text)
    assert (loaded.cores, loaded.timeout, loaded.log_lines) == (1, 1, 9)
    absolute = settings(tmp_path, f"include {tmp_path}/sub/two.conf")
    assert absolute.log_lines == 2


def test_errors_in_included_files_name_them(tmp_path: Path) -> None:
    (tmp_path / "one.conf").write_text("\ncores = x\n")
    with pytest.raises(ConfigError, match=r"one\.conf:2: setting 'cores'"):
        load(tmp_path, "!include one.conf")


def test_files_that_include_themselves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="include each other too deeply"):
        load(tmp_path, "include nix.conf")


def test_later_sources_win(tmp_path: Path) -> None:
    users = []
    for name in ("first", "second"):
        (tmp_path / name).write_text(f"build-dir = /{name}\nlog-lines = 1\n")
        users.append(str(tmp_path / name))
    loaded = load(
        tmp_path,
        "cores = 1\ntimeout = 1\nlog-lines = 9\nbuild-dir = /conf\nsystem-features = a",
        environ={
            "NIX_USER_CONF_FILES": ":".join(users),
            "NIX_CONFIG": "timeout = 2\ncores = 2\nextra-system-features = b",
        },
        overrides=[("cores", "3"), ("extra-system-features", "c"), ("cores", "4")],
    )
    assert loaded.warnings == ()
    assert loaded.settings.build_dir == "/first"
    assert loaded.settings.log_lines == 1
    assert loaded.settings.timeout == 2
    assert loaded.settings.cores == 4
    assert loaded.settings.system_features == frozenset("abc")


def test_user_files_lie_in_the_home_directory(tmp_path: Path) -> None:
    for place in ("home/.config", "config", "system"):
        directory = tmp_path / place / "nix"
        directory.mkdir(parents=True)
        (directory / "nix.conf").write_text(f"build-dir = /{place}\n")
    base = {"NIX_CONF_DIR": str(tmp_path), "HOME": f"{tmp_path}/home"}
    system = {"XDG_CONFIG_DIRS": f"{tmp_path}/system"}
    own = {"XDG_CONFIG_HOME": f"{tmp_path}/config"}
    for environ, expected in [
        ({**base, "XDG_CONFIG_DIRS": "/nowhere"}, "/home/.config"),
        ({**base, **system}, "/home/.config"),
        ({**base, **system, **own}, "/config"),
        ({**base, **system, "HOME": "/nowhere"}, "/system"),
        ({**base, **system, **own, "NIX_USER_CONF_FILES": ""}, ""),
    ]:
        assert load_settings(environ=environ, host=HOST).settings.build_dir == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"NIX_SSL_CERT_FILE": "/a", "SSL_CERT_FILE": "/b"}, "/a"),
        ({"SSL_CERT_FILE": "/b"}, "/b"),
        ({}, "/etc/certificates"),
    ],
)
def test_certificates_come_from_the_environment(
    tmp_path: Path, environ: dict[str, str], expected: str
) -> None:
    assert settings(tmp_path, **environ).ssl_cert_file == expected
    assert settings(tmp_path, "ssl-cert-file = /c", **environ).ssl_cert_file == "/c"


def test_bytes_that_are_not_utf_8_survive(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"build-dir = /\xff\n")
    assert os.fsencode(settings(tmp_path, "include other").build_dir) == b"/\xff"


def test_unknown_settings_are_told_of_once(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "colour = red\ncores = 4\ncolour = blue\nextra-colour = x\nkeep_failed = true",
        environ={"NIX_CONFIG": "colour = green"},
        overrides=[("colour", "black"), ("cores", "5")],
    )
    assert loaded.warnings == (
        "unknown setting 'colour'",
        "unknown setting 'extra-colour'",
        "unknown setting 'keep_failed'",
    )
    assert loaded.settings.cores == 5
    assert not loaded.settings.keep_failed


@pytest.mark.parametrize("name", [*sorted(NIX_ONLY), "extra-substituters"])
def test_settings_of_no_use_here_are_taken_without_a_word(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, f"{name} = anything at all").warnings == ()


def test_only_lists_can_be_added_to(tmp_path: Path) -> None:
    assert load(tmp_path, "extra-cores = 1").warnings == ("unknown setting 'extra-cores'",)


WEAKENING = [
    ("sandbox", "false"),
    ("sandbox", "relaxed"),
    ("sandbox", "no"),
    ("sandbox", "anything"),
    ("build-use-sandbox", "false"),
    ("build-use-chroot", "false"),
    ("sandbox-fallback", "true"),
    ("filter-syscalls", "false"),
    ("allow-new-privileges", "true"),
]


@pytest.mark.parametrize(("name", "value"), WEAKENING)
def test_weakening_settings_are_ignored_with_a_warning(
    tmp_path: Path, name: str, value: str
) -> None:
    new = ALIASES.get(name, name)
    expected = (
        f"setting '{new} = {value}' would weaken the sandbox, which the executor never does; "
        "it is ignored",
    )
    line = f"{name} = {value}"
    assert load(tmp_path, f"{line}\n{line}").warnings == expected
    assert load(tmp_path, environ={"NIX_CONFIG": line}).warnings == expected


@pytest.mark.parametrize(("name", "value"), WEAKENING)
def test_weakening_options_are_errors(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=r"would weaken the sandbox.*; leave it out"):
        load(tmp_path, overrides=[(name, value)])


@pytest.mark.parametrize(("name", "values"), sorted(HARMLESS.items()))
def test_what_the_executor_does_anyway_is_taken_and_takes_warnings_back(
    tmp_path: Path, name: str, values: frozenset[str]
) -> None:
    for value in values:
        assert load(tmp_path, f"{name} = {value}", overrides=[(name, value)]).warnings == ()
        assert load(tmp_path, f"{name} = weak\n{name} = {value}").warnings == ()
        assert len(load(tmp_path, f"{name} = {value}\n{name} = weak").warnings) == 1


def test_options_are_named_in_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^option 'build-cores': setting 'cores': 'x'"):
        load(tmp_path, overrides=[("build-cores", "x")])


@pytest.mark.parametrize(
    ("word", "target", "source", "optional", "read_only"),
    [
        ("/a", "/a", "/a", False, False),
        ("/a=/b", "/a", "/b", False, False),
        ("/a=/b=c", "/a", "/b=c", False, False),
        ("/a/=/b/", "/a", "/b/", False, False),
        ("/a?", "/a", "/a", True, False),
        ("/a:ro", "/a", "/a", False, True),
        ("/a=/b:ro?", "/a", "/b", True, True),
        ("/a=/b?:ro", "/a", "/b", True, True),
        ("/...", "/...", "/...", False, False),
    ],
)
def test_sandbox_paths_have_marks_behind_them(
    word: str, target: str, source: str, optional: bool, read_only: bool
) -> None:
    assert parse_sandbox_path(word) == SandboxPath(
        target=target, source=source, optional=optional, read_only=read_only
    )


@pytest.mark.parametrize(
    "word",
    ["", "?", "a", "a=/b", "/a=b", "/", "/=/b", "//a", "/a//b", "/a/../b", "/../etc=/x", "/./a"],
)
def test_other_sandbox_paths_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"is not absolute|is not canonical"):
        parse_sandbox_path(word)


@pytest.mark.nix
def test_the_same_files_mean_the_same_to_nix(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("build-timeout = 7\nextra-system-features = b # c\n")
    text = "cores = 3\nsystem-features = a\ninclude more.conf\n!include none\nkeep-failed = yes\n"
    ours = settings(tmp_path, text, NIX_CONFIG="max-silent-time = 8\ncores = 5")
    done = subprocess.run(
        ["nix", "--extra-experimental-features", "nix-command", "show-config", "--json"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "NIX_CONF_DIR": str(tmp_path),
            "NIX_USER_CONF_FILES": "",
            "NIX_CONFIG": "max-silent-time = 8\ncores = 5",
        },
        capture_output=True,
        check=True,
    )
    theirs = {name: fields["value"] for name, fields in json.loads(done.stdout).items()}
    assert (ours.cores, ours.timeout, ours.max_silent_time, ours.keep_failed) == tuple(
        theirs[name] for name in ("cores", "timeout", "max-silent-time", "keep-failed")
    )
    assert ours.system_features == frozenset(theirs["system-features"])


_DISABLED = (
    "Ignoring setting 'auto-allocate-uids' because experimental feature 'auto-allocate-uids' is "
    "not enabled",
)


@pytest.mark.parametrize(
    ("text", "value", "warnings"),
    [
        ("auto-allocate-uids = true", False, _DISABLED),
        ("auto-allocate-uids = false", False, _DISABLED),
        ("experimental-features = cgroups\nauto-allocate-uids = true", False, _DISABLED),
        ("auto-allocate-uids = true\nexperimental-features = auto-allocate-uids", True, ()),
        ("", False, ()),
    ],
)
def test_a_setting_of_an_experimental_feature_needs_it(
    tmp_path: Path, text: str, value: bool, warnings: tuple[str, ...]
) -> None:
    loaded = load(tmp_path, text)
    assert loaded.settings.auto_allocate_uids is value
    assert loaded.warnings == warnings


def test_id_ranges_are_offered_on_every_linux(tmp_path: Path) -> None:
    settings = load_settings(environ={"NIX_CONF_DIR": str(tmp_path)}).settings
    assert "uid-range" in settings.available_features
