"""The commands as programs: what they print, exit codes, and errors of one line."""

from __future__ import annotations

import bz2
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from executor.derivation_json import to_json
from executor.formats.nlohmann import dump_json
from executor.formats.store_path import StorePath
from executor.store.delete import delete_tree
from executor.store.local import LocalStore
from executor.store.location import StoreLocation, parse_store_url

ZERO = "0" * 32
COMMANDS = (
    *("build", "instantiate", "show", "add", "query", "verify", "log", "doctor"),
    "show-config",
)


@dataclass(frozen=True)
class Cli:
    """The command line on a scratch store, without any configuration of this machine."""

    directory: Path

    @property
    def location(self) -> StoreLocation:
        return parse_store_url(str(self.directory / "root"), {})

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "NIX_CONFIG": "substituters =",
            "HOME": str(self.directory),
            "NIX_CONF_DIR": str(self.directory),
            "NIX_USER_CONF_FILES": "",
            "NIX_REMOTE": str(self.directory / "root"),
        }

    def run(self, *words: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """Run to the end; a traceback is never all right."""
        done = subprocess.run(
            [sys.executable, "-m", "executor", *words],
            env={**self.environment, **environ},
            cwd=self.directory,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert "internal error" not in done.stderr, done.stderr
        return done

    def ok(self, *words: str, stdin: str = "", **environ: str) -> str:
        """Standard output of a command that has nothing to complain about."""
        done = self.run(*words, stdin=stdin, **environ)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    def refused(self, *words: str, stdin: str = "", **environ: str) -> str:
        """The one line that a command says instead of doing something."""
        done = self.run(*words, stdin=stdin, **environ)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("error: ").removesuffix("\n")

    def real(self, path: str) -> Path:
        """Where a store path lies."""
        return self.directory / "root" / path.lstrip("/")


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    yield Cli(tmp_path)
    parent = os.open(tmp_path, os.O_RDONLY)
    delete_tree(parent, b"root")
    os.close(parent)


@pytest.fixture
def two(cli: Cli) -> tuple[str, str]:
    """Two derivations in the store, the second above the first."""
    below = {"system": "x86_64-linux", "builder": "/bin/sh", "outputs": {"out": {}, "dev": {}}}
    top = {**below, "inputs": {"drvs": {"below": ["out"]}}, "env": {"é": "{{below}}"}}
    file = cli.directory / "two.json"
    file.write_text(json.dumps({"below": below, "top": top}))
    top_path = cli.ok("instantiate", "two.json").strip()
    (below_path,) = cli.ok("query", "--references", top_path).split()
    return below_path, top_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(cli: Cli, command: str) -> None:
    text = cli.ok(command, "--help")
    assert text.startswith(f"usage: executor {command}")
    example = text.partition("example:\n")[2]
    assert f"executor {command}" in example
    assert "--store STORE" in text


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(cli: Cli, words: list[str]) -> None:
    text = cli.ok(*words)
    listed = {line.split()[0] for line in text.splitlines() if line.startswith("    ")}
    assert set(COMMANDS) <= listed
    assert "example:" in text


def test_the_version_is_told(cli: Cli) -> None:
    assert cli.ok("--version").startswith("executor 0.")


def test_an_unknown_command_is_answered_with_the_known_ones(cli: Cli) -> None:
    text = cli.refused("biuld")
    assert text.startswith("unknown command 'biuld'; known are: ")
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ["build"],
        ["show"],
        ["add"],
        ["instantiate"],
        ["log"],
        ["query", f"/nix/store/{ZERO}-x"],
        ["query", "--hash", "--size", f"/nix/store/{ZERO}-x"],
        ["query", "--references"],
        ["verify", "extra"],
        ["show-config", "--nonsense"],
        ["add", "--name"],
    ],
)
def test_wrong_use_is_told_with_the_right_one(cli: Cli, words: list[str]) -> None:
    done = cli.run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"usage: executor {words[0]}")
    assert f"executor {words[0]}: error: " in done.stderr.splitlines()[-1]


def test_instantiate_prints_the_derivations_that_nothing_else_needs(
    cli: Cli, two: tuple[str, str]
) -> None:
    below, top = two
    assert (below[44:], top[44:]) == ("below.drv", "top.drv")
    assert cli.real(top).read_bytes().startswith(b"Derive(")
    text = (cli.directory / "two.json").read_text()
    assert cli.ok("instantiate", "-", stdin=text) == f"{top}\n"
    assert cli.ok("instantiate", "two.json", "./two.json") == f"{top}\n{top}\n"


def test_show_and_instantiate_are_each_other_s_reverse(cli: Cli, two: tuple[str, str]) -> None:
    below, top = two
    shown = cli.ok("show", top)
    assert cli.ok("instantiate", "-", stdin=shown) == f"{top}\n"
    recursive = cli.ok("show", "--recursive", top)
    derivations = json.loads(recursive)["derivations"]
    assert set(derivations) == {Path(below).name, Path(top).name}
    with LocalStore.open(cli.location, read_only=True) as store:
        for name, value in derivations.items():
            assert value == to_json(store.read_derivation(StorePath.parse(name)))
    assert recursive == dump_json(json.loads(recursive)).decode() + "\n"


def test_show_leaves_sources_out(cli: Cli) -> None:
    (cli.directory / "text").write_text("text")
    value = {"name": "x", "system": "s", "builder": "/b", "inputs": {"srcs": ["./text"]}}
    path = cli.ok("instantiate", "-", stdin=json.dumps(value)).strip()
    assert len(cli.ok("query", "--requisites", path).split()) == 2
    assert set(json.loads(cli.ok("show", "-r", path))["derivations"]) == {Path(path).name}


def test_show_takes_real_paths_and_several(cli: Cli, two: tuple[str, str]) -> None:
    text = cli.ok("show", *(str(cli.real(path)) for path in two))
    assert set(json.loads(text)["derivations"]) == {Path(path).name for path in two}


def test_add_prints_the_paths_that_were_made(cli: Cli) -> None:
    (cli.directory / "tree").mkdir()
    (cli.directory / "tree" / "file").write_text("contents")
    (cli.directory / "text").write_text("123456789")
    tree, text = cli.ok("add", "tree/", "./text").split()
    assert (tree[44:], text[44:]) == ("tree", "text")
    assert (cli.real(tree) / "file").read_text() == "contents"
    # As Nix 2.34.8 says to `nix-store --add-fixed sha256` of such a file.
    flat = cli.ok("add", "--flat", "--name", "nine", "text").strip()
    assert flat == "/nix/store/5jbmkv6djjm4j1w8vwfi9xj7rmimvn32-nine"
    assert cli.ok("add", "tree").strip() == tree


def test_query_answers_for_all_paths_together(cli: Cli, two: tuple[str, str]) -> None:
    below, top = two
    assert cli.ok("query", "--references", top, below) == f"{below}\n"
    assert cli.ok("query", "--referrers", below) == f"{top}\n"
    assert cli.ok("query", "--requisites", top) == "".join(f"{p}\n" for p in sorted(two))
    assert cli.ok("query", "-R", below, top, top) == "".join(f"{p}\n" for p in sorted(two))
    outputs = cli.ok("query", "--outputs", below, top).split()
    assert sorted(path[44:] for path in outputs) == ["below", "below-dev", "top", "top-dev"]
    assert outputs == sorted(outputs)
    assert cli.ok("query", "--deriver", below, top) == "unknown-deriver\n" * 2
    size, again = cli.ok("query", "--size", below, below).split()
    assert size == again
    assert int(size) > cli.real(below).stat().st_size
    (hash_,) = cli.ok("query", "--hash", below).split()
    assert hash_.startswith("sha256:")


@pytest.mark.nix
def test_query_answers_as_nix_does(cli: Cli, two: tuple[str, str]) -> None:
    for question in ("--references", "--referrers", "--requisites", "--hash", "--size"):
        for path in two:
            done = subprocess.run(
                ["nix-store", "--store", str(cli.directory / "root"), "-q", question, path],
                env={**cli.environment, "NIX_REMOTE": "local"},
                capture_output=True,
                text=True,
                check=True,
            )
            ours = cli.ok("query", question, path).split()
            assert sorted(ours) == sorted(done.stdout.split()), question


def test_verify_tells_by_its_exit_code(cli: Cli, two: tuple[str, str]) -> None:
    below, _ = two
    assert cli.run("verify").returncode == 0
    assert cli.run("verify", "--check-contents").returncode == 0
    cli.real(below).chmod(0o644)
    cli.real(below).write_text("tampered")
    assert cli.run("verify").returncode == 0
    done = cli.run("verify", "--check-contents")
    assert done.returncode == 1
    assert below in done.stderr
    cli.real(below).unlink()
    done = cli.run("verify")
    assert done.returncode == 1
    assert below in done.stderr


def test_verify_repairs_links(cli: Cli, two: tuple[str, str]) -> None:
    link = cli.real(two[0]).parent / ".links" / ("0" * 52)
    link.write_text("other")
    assert cli.run("verify").returncode == 0
    done = cli.run("verify", "--check-contents")
    assert done.returncode == 1
    assert f'link "{link}" was modified! expected hash {link.name}, got ' in done.stderr
    done = cli.run("verify", "--check-contents", "--repair")
    assert done.returncode == 0
    assert f'removed link "{link}"' in done.stderr
    assert not link.exists()


def test_log_prints_the_bytes_as_they_were(cli: Cli, two: tuple[str, str]) -> None:
    below, top = two
    for path, data in ((below, bz2.compress("é\n\x1b[1mbold".encode())), (top, b"plain\n")):
        name = Path(path).name
        directory = Path(cli.location.log_dir) / "drvs" / name[:2]
        directory.mkdir(parents=True, exist_ok=True)
        suffix = ".bz2" if path == below else ""
        (directory / (name[2:] + suffix)).write_bytes(data)
    assert cli.ok("log", below) == "é\n\x1b[1mbold"
    assert cli.ok("log", top) == "plain\n"
    assert cli.ok("log", str(cli.real(top))) == "plain\n"
    out = cli.ok("query", "--outputs", top).split()[0]
    assert cli.ok("log", out) == "plain\n"


def test_show_config_prints_what_is_in_force(cli: Cli) -> None:
    (cli.directory / "nix.conf").write_text("cores = 3\ntimeout = 3\nmax-jobs = 3\n")
    words = [
        "--timeout",
        "5",
        "--extra-sandbox-paths",
        "/a=/b?:ro",
        "--option",
        "impure-env",
        "A=1",
    ]
    environ = {"NIX_CONFIG": "timeout = 4\nmax-jobs = 4"}
    lines = cli.ok("show-config", *words, **environ).splitlines()
    assert lines == sorted(lines)
    assert {"cores = 3", "max-jobs = 4", "timeout = 5", "impure-env = A=1"} <= set(lines)
    assert "keep-build-log = true" in lines
    (paths,) = [line for line in lines if line.startswith("sandbox-paths = ")]
    assert paths.endswith("/a=/b?:ro")
    values = json.loads(cli.ok("show-config", "--json", *words, **environ))
    assert values["timeout"] == {"value": 5}
    assert values["impure-env"] == {"value": {"A": "1"}}
    assert len(values) == len(lines)


def test_what_show_config_prints_can_be_read_again(cli: Cli) -> None:
    text = cli.ok("show-config", "--cores", "7", "--extra-sandbox-paths", "/a=/b?:ro /c:ro")
    assert cli.ok("show-config", NIX_CONFIG=text) == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["show", "/etc/shadow"], "not in the store directory", id="host file"),
        pytest.param(["show", "x.drv"], "not in the store directory", id="relative path"),
        pytest.param(["show", f"/nix/store/{ZERO}-x"], "is not a derivation", id="no derivation"),
        pytest.param(
            ["show", f"/nix/store/{ZERO}-x.drv"], "x.drv': No such file", id="unknown path"
        ),
        pytest.param(["show", "/nix/store/x.drv"], "not the base name|not in", id="no digits"),
        pytest.param(
            ["show", f"/nix/store/{ZERO}-a\n\x1b[2J.drv"],
            r"name 'a\\n\\x1b\[2J.drv' contains characters",
            id="control characters in a name",
        ),
        pytest.param(["query", "--hash", f"/nix/store/{ZERO}-x"], "is not valid", id="no hash"),
        pytest.param(["query", "-R", f"/nix/store/{ZERO}-x"], "is not valid", id="no closure"),
        pytest.param(["query", "--referrers", f"/nix/store/{ZERO}-x"], "is not valid", id="none"),
        pytest.param(["query", "--size", "/nix/store/%"], "base name|not in", id="wild card"),
        pytest.param(["query", "--size", ""], "not in the store", id="empty path"),
        pytest.param(["log", f"/nix/store/{ZERO}-x.drv"], "build log of '.*' is not", id="no log"),
        pytest.param(["log", "/nix/store/.."], "base name|not in", id="way up"),
        pytest.param(["add", "missing"], "cannot read 'missing': No such file", id="no file"),
        pytest.param(["add", "/"], "root directory cannot be added", id="root directory"),
        pytest.param(["add", "two.json", "--name", "a/b"], "contains characters", id="bad name"),
        pytest.param(["add", ".hidden file"], "contains characters", id="bad name of a file"),
        pytest.param(["add", "--flat", "tree"], "'tree' is not a reg", id="flat tree"),
        pytest.param(["add", "--flat", "link"], "'link' is not a reg", id="flat link"),
        pytest.param(["add", "--flat", "fifo"], "'fifo' is not a reg", id="flat FIFO"),
        pytest.param(["add", "fifo"], "unsupported type", id="FIFO"),
        pytest.param(["instantiate", "missing.json"], "can't read 'missing.json'", id="no JSON"),
        pytest.param(["instantiate", "tree"], "can't read 'tree': Is a dir", id="directory"),
        pytest.param(["instantiate", "bad.json"], "'bad.json': not JSON", id="bad JSON"),
        pytest.param(["instantiate", "deep.json"], "not JSON: too many levels", id="deep JSON"),
        pytest.param(["instantiate", "list.json"], "is not an object", id="list"),
        pytest.param(["instantiate", "-"], "not JSON", id="empty standard input"),
        pytest.param(["show-config", "--cores"], "'--cores' needs a value", id="no value"),
        pytest.param(["show-config", "--cores", "x"], "'x' is not a number", id="bad value"),
        pytest.param(["show-config", "--no-sandbox"], "weaken the sandbox", id="weaker sandbox"),
        pytest.param(["show-config", "--store", "https://x"], "not a local store", id="remote"),
        pytest.param(["show-config", "--store", "x"], "cannot parse store 'x'", id="no store"),
        pytest.param(["verify", "--store", "./two.json"], "two.json", id="file as store"),
        pytest.param(
            ["query", "--hash", "--store", "./empty", f"/nix/store/{ZERO}-x"],
            "no store database in",
            id="no database",
        ),
    ],
)
def test_errors_are_one_line(
    cli: Cli, two: tuple[str, str], words: list[str], message: str
) -> None:
    del two
    (cli.directory / "tree").mkdir()
    (cli.directory / "empty").mkdir()
    (cli.directory / ".hidden file").write_text("")
    (cli.directory / "bad.json").write_text("{")
    (cli.directory / "deep.json").write_text("[" * 200_000)
    (cli.directory / "list.json").write_text("[]")
    (cli.directory / "link").symlink_to("two.json")
    os.mkfifo(cli.directory / "fifo")
    assert re.search(message, cli.refused(*words))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "must start with 'Derive'", id="empty"),
        pytest.param(b"Derive(", "expected", id="cut short"),
        pytest.param(b"Derive(" + b"[" * 100_000, "expected", id="nested"),
        pytest.param(b"DrvWithVersion(" * 10_000, "complete string", id="versions"),
        pytest.param(b'Derive([],[],[],"s","/b",[],[])', "no outputs", id="no outputs"),
        pytest.param(b"\xff\xfe", "must start with", id="not UTF-8"),
    ],
)
def test_a_malformed_derivation_is_one_line(
    cli: Cli, two: tuple[str, str], data: bytes, message: str
) -> None:
    path, _ = two
    cli.real(path).chmod(0o644)
    cli.real(path).write_bytes(data)
    (cli.directory / "bad.drv").write_bytes(data)
    for words in (["show", path], ["show", "-r", path], ["add", "bad.drv"]):
        text = cli.refused(*words)
        assert message in text
        assert ("bad.drv" if "add" in words else path) in text


@pytest.mark.parametrize("where", ["nix.conf", "NIX_CONFIG"])
def test_a_malformed_configuration_is_one_line(cli: Cli, where: str) -> None:
    environ = {}
    if where == "NIX_CONFIG":
        environ["NIX_CONFIG"] = "\ncores"
    else:
        (cli.directory / "nix.conf").write_text("\ncores")
    text = cli.refused("show-config", **environ)
    assert text.endswith(f"{where}:2: syntax error: expected 'name = value'")


def test_debug_shows_where_an_error_comes_from(cli: Cli) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "executor", "instantiate", "--debug", "missing.json"],
        env=cli.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "missing.json" in done.stderr


def test_a_reader_that_has_had_enough_is_no_error(cli: Cli) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "executor", "show-config"],
        env=cli.environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_output_that_can_t_be_written_is_an_error(cli: Cli) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "executor", "show-config"],
            env=cli.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")
