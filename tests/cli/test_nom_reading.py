"""The picture that a reader of ``internal-json`` gets of a run, ours and stock Nix's."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from executor.formats.store_path import StorePath
from executor.store.locks import PathLocks
from tests.build.conftest import Drv, Workshop, fixed
from tests.cli.nom_reading import BadStreamError, Copy, Picture, Reader, read
from tests.web import Answer, Server
from tests.web import server as server

FORMAT = ("--log-format", "internal-json")
BIG = 1 << 20


@dataclass(frozen=True, slots=True)
class Graph:
    """``dep`` and ``big`` are in a cache; ``ok`` and ``bad`` must be built; ``top`` can't be."""

    here: Workshop
    dep: Drv
    big: Drv
    ok: Drv
    bad: Drv
    top: Drv


def graph(directory: Path) -> Graph:
    directory.mkdir()
    here = Workshop(directory)
    dep = here.make("dep", "echo deep > $out")
    big = here.make("big", f"head -c {BIG} /dev/zero > $out")
    said = r"""echo '@nix {"action":"setPhase","phase":"buildPhase"}'"""
    script = f"echo first; {said}; cat $dep_out; head -c 1 $big_out > $out"
    ok = here.make("ok", script, inputs=[dep, big])
    bad = here.make("bad", "echo going wrong; exit 3", inputs=[dep])
    return Graph(here, dep, big, ok, bad, here.make("top", inputs=[ok, bad]))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A binary cache with what is in it."""
    far = graph(tmp_path / "far")
    for drv in (far.dep, far.big):
        assert far.here.build(drv).result.success
    found = tmp_path / "cache"
    paths = [far.here.render(drv.out) for drv in (far.dep, far.big)]
    target = f"file://{found}?compression=xz"
    done = far.here.cli("copy", "--to", target, *paths, "--store", str(far.here.root))
    assert done.returncode == 0, done.stderr
    return found


def check_picture(found: Picture, made: Graph, url: str, *, exact: bool) -> None:
    """What has to be seen of the run, whoever ran it; Nix 2.8 forgets the last bytes of a copy."""
    assert found.names("done") == {"ok"}
    assert found.names("failed") == {"bad"}
    assert found.names("running") == set()
    ok, bad = found.builds[made.ok.text], found.builds[made.bad.text]
    assert (ok.lines, ok.phases) == (["first", "deep"], ["buildPhase"])
    assert bad.lines == ["going wrong"]
    sizes = {
        made.here.render(drv.out): made.here.info(drv.out).nar_size for drv in (made.dep, made.big)
    }
    if not exact:
        for copy in found.copies.values():
            copy.done = copy.expected = sizes[copy.path]
    assert found.copies == {
        path: Copy(path, url, "local", size, size, ended=True) for path, size in sizes.items()
    }
    assert found.expected[100] == sum(sizes.values())
    assert found.totals[103] == (2, 2, 0, 0)
    assert found.totals[104][0] == 1
    assert found.totals[104][2:] == (0, 1)
    assert found.waiting == {}
    assert found.warnings == []
    assert made.here.render(made.top.out) in found.queried
    assert all(transfer.ended for transfer in found.transfers)


def ours(made: Graph, url: str) -> str:
    options = ("--keep-going", "--substituters", url, "--no-require-sigs", *FORMAT)
    done = made.here.cli("build", made.top.text, *options)
    assert done.returncode == 1 or done.returncode >= 100
    return done.stderr


def nix(made: Graph, url: str) -> str:
    """Stock Nix on the same store, with the same sandbox."""
    environment = made.here.environment()
    settings = environment["NIX_CONFIG"].replace(":ro", "").replace("substituters =\n", "")
    settings += f"sandbox = true\nsandbox-fallback = false\nsubstituters = {url}\n"
    done = subprocess.run(
        ["nix-store", "--store", str(made.here.root), "-r", made.top.text, "-k", "-v", *FORMAT],
        env={**environment, "NIX_REMOTE": "local", "NIX_CONFIG": settings + "require-sigs = false"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 100
    return done.stderr


@pytest.mark.root
@pytest.mark.nix
@pytest.mark.parametrize("run", [ours, nix])
def test_a_mixed_graph_with_a_cache_in_a_directory(
    tmp_path: Path, cache: Path, run: Callable[[Graph, str], str]
) -> None:
    made, url = graph(tmp_path / "here"), f"file://{cache}"
    found = read(run(made, url).splitlines())
    check_picture(found, made, url, exact=run is ours)
    assert found.transfers == []


@pytest.mark.root
@pytest.mark.nix
@pytest.mark.parametrize("run", [ours, nix])
def test_a_mixed_graph_with_a_cache_on_a_server(
    tmp_path: Path, cache: Path, server: Server, run: Callable[[Graph, str], str]
) -> None:
    server.directory = cache
    made, url = graph(tmp_path / "here"), server.url("")
    found = read(run(made, url).splitlines())
    check_picture(found, made, url, exact=run is ours)
    archives = [transfer for transfer in found.transfers if "/nar/" in transfer.url]
    sizes = {transfer.url: transfer.done for transfer in archives}
    files = (cache / "nar").iterdir()
    assert sizes == {f"{url}/nar/{file.name}": file.stat().st_size for file in files}
    assert all(transfer.expected == transfer.done for transfer in archives)
    assert found.expected[101] == sum(sizes.values())
    if run is ours:  # Nix before 2.9 doesn't say what is inside of what
        descriptions = [each for each in found.transfers if each.url.endswith(".narinfo")]
        assert {transfer.parent for transfer in archives} == {100}
        assert {transfer.parent for transfer in descriptions} == {109}


@pytest.mark.root
def test_a_path_that_is_damaged_on_the_way(tmp_path: Path, cache: Path) -> None:
    """What has ended is no success: the cause is said, and the path is built."""
    for archive in (cache / "nar").iterdir():
        archive.write_bytes(archive.read_bytes()[:60])
    made = graph(tmp_path / "here")
    found = read(ours(made, f"file://{cache}").splitlines())
    assert all(copy.ended for copy in found.copies.values())
    assert any("can't be decompressed" in error for error in found.errors)
    assert found.totals[103] == (0, 2, 0, 0)


@pytest.mark.root
def test_a_download_of_a_builtin(tmp_path: Path, server: Server) -> None:
    here, content = Workshop(tmp_path), b"x" * BIG
    here.change(fod_network="host")
    url = server.offer("/source", Answer(body=content))
    drv = here.make(
        "source",
        outputs={"out": fixed(content)},
        builder=b"builtin:fetchurl",
        args=(),
        platform="builtin",
        env={"url": url},
    )
    done = here.cli("build", drv.text, *FORMAT)
    found = read(done.stderr.splitlines())
    assert found.names("done") == {"source"}
    (transfer,) = found.transfers
    assert (transfer.url, transfer.parent) == (url, 105)
    assert (transfer.done, transfer.expected) == (BIG, BIG)
    assert found.builds[drv.text].lines == []


@pytest.mark.root
def test_what_another_builds_is_waited_for(tmp_path: Path) -> None:
    here = Workshop(tmp_path)
    drv, reader, locks = here.make("made"), Reader(), PathLocks()
    real_path = str(here.real(drv.out))
    assert locks.try_acquire([real_path])
    with here.start_cli("build", drv.text, *FORMAT) as run:
        assert run.stderr is not None
        for line in run.stderr:
            reader.take(line)
            if reader.picture.waiting:
                break
        (text,) = reader.picture.waiting.values()
        assert text.startswith(f"waiting for lock on '{real_path}'")
        assert reader.picture.builds == {}
        locks.release()
        for line in run.stderr:
            reader.take(line)
        assert run.wait(30) == 0
    assert (reader.picture.waiting, reader.picture.waited) == ({}, [text])
    assert reader.picture.names("done") == {"made"}


@pytest.mark.root
@pytest.mark.parametrize("asked", ["/nix-cache-info", "narinfo", "nar/"])
def test_the_end_by_the_user_while_a_server_is_silent(
    tmp_path: Path, cache: Path, server: Server, asked: str
) -> None:
    """Whatever is under way then, each activity has its end."""
    server.directory, silence = cache, threading.Event()
    names = [f"/{file.relative_to(cache)}" for file in cache.rglob("*")]
    for name in names:
        if asked in name and (cache / name[1:]).is_file():
            server.offer(name, Answer(body=(cache / name[1:]).read_bytes(), wait=silence))
    made, reader = graph(tmp_path / "here"), Reader()
    options = ("--substituters", server.url(""), "--no-require-sigs", *FORMAT)
    with made.here.start_cli("build", made.top.text, *options) as run:
        assert run.stderr is not None
        for line in run.stderr:
            reader.take(line)
            if line.startswith("@nix") and asked in line and "downloading" in line:
                run.send_signal(signal.SIGINT)
                begun = time.monotonic()
        assert run.wait(30) == 130
        assert time.monotonic() - begun < 15, "it waited for the server"
        silence.set()
    assert reader.picture.open == {}
    assert any("interrupted by the user" in error for error in reader.picture.errors)


# The reader itself: what it takes for an error is one.

DRV = StorePath("0" * 32, "x.drv")
NAME = f"/nix/store/{DRV.base_name}"
START = {"action": "start", "id": 1, "level": 3, "parent": 0, "text": "", "type": 105}
BUILD = {**START, "fields": [NAME, "", 1, 1]}
STOP = {"action": "stop", "id": 1}


def stream(*told: object) -> list[str]:
    return [f"@nix {json.dumps(each)}" for each in told]


@pytest.mark.parametrize(
    "text",
    [
        f"builder for '{NAME}' failed with exit code 1",
        f"Cannot build '{NAME}'.\nReason: builder failed with exit code 1.",
        f"Cannot build '\x1b[35;1m{NAME}\x1b[0m'.\n       Reason: \x1b[31;1mbuilder failed",
    ],
)
def test_a_failure_in_both_forms(text: str) -> None:
    error = {"action": "msg", "level": 0, "msg": f"\x1b[31;1merror:\x1b[0m {text}"}
    for order in ((BUILD, STOP, error), (BUILD, error, STOP)):
        assert read(stream(*order)).names("failed") == {"x"}
    assert read(stream(BUILD, STOP)).names("done") == {"x"}


@pytest.mark.parametrize(
    "lines",
    [
        ["building 'x'..."],
        stream(BUILD),
        stream(BUILD, BUILD, STOP),
        stream(START, STOP),
        stream(STOP),
        stream(BUILD, STOP, STOP),
        stream({**BUILD, "parent": 7}, STOP),
        stream({"action": "result", "id": 1, "type": 101, "fields": ["x"]}),
        stream({"action": "other"}),
    ],
)
def test_a_bad_stream(lines: list[str]) -> None:
    with pytest.raises(BadStreamError):
        read(lines)
