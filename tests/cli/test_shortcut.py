"""The shortcut for what is valid: never another answer than the long way's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from executor.cli.shortcut import valid_outputs
from executor.config import load_settings
from executor.errors import ConfigError
from executor.setting_names import (
    ALIASES,
    EXPERIMENTAL,
    HARMLESS,
    NIX_ONLY,
    SIMPLE_BOOLEANS,
    SIMPLE_NUMBERS,
    SIMPLE_TEXTS,
)
from executor.settings import Settings

EXECUTOR = Path(sys.executable).with_name("executor")
JSON = """{"version": 4, "derivations": {"two": {"system": "x86_64-linux", "builder": "/bin/sh",
    "args": ["-e", "-c", "echo 1 > $out; echo 2 > $dev"], "outputs": {"out": {}, "dev": {}}}}}"""
PLAIN = """\
# as on many machines
sandbox = true
max-jobs = 4
substituters =
trusted-public-keys = a b c   # keys
sandbox-paths = /bin/sh=/bin/busybox /etc/x?
warn-dirty = false
extra-system-features = kvm
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with a valid derivation of two outputs, and that derivation."""
    directory = tmp_path_factory.mktemp("shortcut")
    (directory / "two.json").write_text(JSON)
    store = directory / "store"
    environ = environment(directory)
    command = [*map(str, (EXECUTOR, "instantiate", "--store", store, directory / "two.json"))]
    drv = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    subprocess.run([EXECUTOR, "build", "--store", store, drv.strip()], env=environ, check=True)
    return store, drv.strip()


def environment(home: Path, conf: str = PLAIN, **more: str) -> dict[str, str]:
    """Nothing of this machine's configuration."""
    (home / "conf").mkdir(exist_ok=True)
    (home / "conf/nix.conf").write_text(conf)
    return {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "NIX_CONF_DIR": str(home / "conf"),
        "XDG_CONFIG_DIRS": "",
        **more,
    }


def both_ways(
    words: list[str], environ: Mapping[str, str]
) -> tuple[tuple[int, str, str], tuple[int, str, str]]:
    """What the program answers, and what it answers where the shortcut is shut (--log-format)."""
    answers = []
    for more in ([], ["--log-format", "bar"]):
        done = subprocess.run(
            [EXECUTOR, *words, *more], env=environ, capture_output=True, text=True, check=False
        )
        answers.append((done.returncode, done.stdout, done.stderr))
    return answers[0], answers[1]


@pytest.mark.root
@pytest.mark.parametrize("form", ["option", "variable", "slash", "flags"])
def test_what_is_valid_is_found_and_told_alike(
    built: tuple[Path, str], tmp_path: Path, form: str
) -> None:
    store, drv = built
    environ = environment(tmp_path)
    words = ["build", "--store", str(store), drv]
    if form == "variable":
        environ, words = environment(tmp_path, NIX_REMOTE=str(store)), ["build", drv]
    elif form == "slash":
        words = ["build", "--store", f"/{store}/../{store.name}/", drv]
    elif form == "flags":
        words = ["build", "-L", drv, "-k", drv, "--store", "/nowhere", "--store", str(store)]
    found = valid_outputs(words, environ)
    assert found is not None
    short, long = both_ways(words, environ)
    assert short == long == (0, "".join(f"{path}\n" for path in found), short[2])
    assert "already valid" in short[2]
    assert len(found) == (4 if form == "flags" else 2)


@pytest.mark.root
@pytest.mark.parametrize(
    ("words", "more"),
    [
        *((["build", "--check"], {}), (["build", "--json"], {}), (["build", "-v"], {})),
        *((["build", "--add-root", "x"], {}), (["build", "--repair"], {}), (["query"], {})),
        *((["build", "--cores", "x"], {}), (["build", "--no-sandbox"], {}), (["build", "-"], {})),
        *((["build"], {"NIX_STATE_DIR": "/x"}), (["build"], {"NIX_STORE_DIR": "/x"})),
        *((["build"], {"NIX_USER_CONF_FILES": ""}), (["build"], {"NIX_CONFIG": "x"})),
        *((["build"], {"NIX_CONFIG": "sandbox = false"}), (["build"], {"NIX_CONFIG": "a = b"})),
        (["build"], {"NIX_CONFIG": "cores = many"}),
        (["build"], {"NIX_CONFIG": "sandbox-paths = bin"}),
        (["build"], {"NIX_CONFIG": "sandbox-paths = /bin/../x"}),
        (["build"], {"NIX_CONFIG": "include /etc/hosts"}),
        (["build"], {"NIX_CONFIG": "experimental-features = ca-derivations"}),
    ],
)
def test_whatever_is_not_plain_takes_the_long_way(
    built: tuple[Path, str], tmp_path: Path, words: list[str], more: dict[str, str]
) -> None:
    store, drv = built
    environ = environment(tmp_path, **more)
    assert valid_outputs([*words, "--store", str(store), drv], environ) is None


@pytest.mark.root
def test_other_targets_and_stores_take_the_long_way(
    built: tuple[Path, str], tmp_path: Path
) -> None:
    store, drv = built
    environ = environment(tmp_path)
    (tmp_path / "link").symlink_to(store)
    name = drv.rpartition("/")[2]
    for target in (f"{drv}^out", f"{drv}!out", name, str(store) + drv, drv + "\0", "/nix/store/x"):
        assert valid_outputs(["build", "--store", str(store), target], environ) is None
    for other in (f"local?root={store}", tmp_path / "link", tmp_path, "store", "daemon", "./store"):
        assert valid_outputs(["build", "--store", str(other), drv], environ) is None
    for words in (["build", "--store"], ["build", drv, "-L", drv], ["build", drv, "--store", "-L"]):
        assert valid_outputs(words, {**environ, "NIX_REMOTE": str(store)}) is None
    schema = store / "nix/var/nix/db/schema"
    schema.write_text("11")
    assert valid_outputs(["build", "--store", str(store), drv], environ) is None
    schema.write_text("10")
    assert valid_outputs(["build", "--store", str(store), drv], environ) is not None


@pytest.mark.root
def test_an_output_that_is_missing_is_built(built: tuple[Path, str], tmp_path: Path) -> None:
    store, drv = built
    environ = environment(tmp_path)
    words = ["build", "--store", str(store), drv]
    found = valid_outputs(words, environ)
    assert found is not None
    delete = ["nix-store", "--store", str(store), "--delete", found[0]]
    subprocess.run(delete, env=environ, check=True, capture_output=True)
    assert valid_outputs(words, environ) is None
    done = subprocess.run([EXECUTOR, *words], env=environ, capture_output=True, text=True)
    assert done.stdout.splitlines() == found


@pytest.mark.root
def test_an_output_that_cant_be_written_is_an_error(
    built: tuple[Path, str], tmp_path: Path
) -> None:
    store, drv = built
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [EXECUTOR, "build", "--store", store, drv],
            env=environment(tmp_path),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "No space left" in done.stderr


def test_the_simple_settings_are_what_they_are_said_to_be() -> None:
    kinds = {field.name.replace("_", "-"): str(field.type) for field in fields(Settings)}
    choices = {"build-limits-mode", "fod-network"}
    for names, allowed in (
        (SIMPLE_BOOLEANS, ("bool",)),
        (SIMPLE_NUMBERS, ("int",)),
        (SIMPLE_TEXTS, ("str", "tuple[str", "frozenset[str")),
    ):
        for name in names:
            plain = name if name in kinds else name.removeprefix("extra-")
            assert kinds[plain].startswith(allowed), name
            assert plain not in choices | EXPERIMENTAL.keys() | ALIASES.keys()
    assert kinds.keys().isdisjoint(HARMLESS | dict.fromkeys(NIX_ONLY))


@pytest.mark.parametrize("value", ["true", "1", "x", "", "4", "4K", "-1", "0x1", "\u0664", "a=b"])
def test_no_value_is_plain_that_the_settings_refuse(value: str) -> None:
    from executor.cli.shortcut import _is_plain_configuration

    names = (*SIMPLE_BOOLEANS, *SIMPLE_NUMBERS, *SIMPLE_TEXTS, *HARMLESS, "sandbox-paths")
    for name in names:
        text = f"{name} = {value}"
        if _is_plain_configuration(text):
            try:
                loaded = load_settings(environ={"NIX_CONFIG": text}, read_file=_no_file)
            except ConfigError as error:
                pytest.fail(f"{text}: {error}")
            assert loaded.warnings == ()


def _no_file(path: str) -> str:
    raise FileNotFoundError(path)


def test_nothing_of_weight_is_imported() -> None:
    code = "import sys; import executor.cli.entry, executor.cli.shortcut; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code]
    paths = os.pathsep.join(sys.path)
    command[-1] = f"import sys; sys.path[:] = {paths.split(os.pathsep)!r}; {code}"
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "executor.cli.shortcut" in loaded
    heavy = {"argparse", "ctypes", "dataclasses", "datetime", "enum", "json", "re", "typing"}
    assert loaded.isdisjoint(heavy | {"asyncio", "executor.cli.main", "signal", "sqlite3"})
