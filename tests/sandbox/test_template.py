"""Prepared roots: used from the third sandbox of a kind on, the same to see, and never stale."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox import Bind, File, InputPath, SandboxSpec, Spawner
from sandbox.plan import BindPath, MakeDirectory, MountFileSystem, make_plan, split_plan
from tests.sandbox.conftest import BUSYBOX, UID, Bench, with_spawner

pytestmark = pytest.mark.root


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    os.chmod(tmp_path, 0o700)
    return Bench(tmp_path)


def templates(spawner: Spawner) -> int:
    """How many mount namespaces a spawner holds."""
    directory = f"/proc/{spawner._process.pid}/fd"
    links = [os.readlink(os.path.join(directory, name)) for name in os.listdir(directory)]
    return sum(link.startswith("mnt:") for link in links)


def children(spawner: Spawner) -> list[str]:
    """The programs of a spawner's children."""
    pid = spawner._process.pid
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{child}/exe").readlink().name for child in pids]


async def output(bench: Bench, spawner: Spawner, spec: SandboxSpec) -> str:
    finished = await bench.finish(*await bench.start(spawner, spec))
    return finished.output


def test_a_template_looks_like_a_root_of_ones_own(bench: Bench) -> None:
    script = """
        busybox cut -d' ' -f5,6,9- /proc/self/mountinfo | busybox sed 's/size=[^,]*//'
        busybox find / -xdev -exec busybox stat -c '%n %a %u %g %F' {} +
        busybox cat /etc/passwd; busybox ls -l /proc/self/fd | busybox wc -l"""

    async def go(spawner: Spawner) -> None:
        alone = await output(bench, spawner, bench.spec(script))
        assert templates(spawner) == 0
        await output(bench, spawner, bench.spec("true"))
        assert templates(spawner) == 1
        prepared = await output(bench, spawner, bench.spec(script))
        assert templates(spawner) == 1
        assert children(spawner) == ["starter.bin"]
        # The one difference: nobody at all can write to the root.
        as_alone = prepared.replace("/ ro,", "/ rw,")
        assert sorted(as_alone.splitlines()) == sorted(alone.splitlines())
        assert "/ ro," in prepared

    with_spawner(go)


def test_nothing_stays_in_a_template(bench: Bench) -> None:
    script = """
        for at in / /etc /dev /bin /dev/pts /nix; do echo x > $at/left; done 2> /dev/null
        echo x > /dev/shm/left; echo x > /tmp/left; echo x > /build/left; busybox mkdir /nix/store/l
        busybox find / -path /proc -prune -o -name left -print; busybox ls /nix/store"""

    async def go(spawner: Spawner) -> None:
        for _ in range(4):
            found = await output(bench, spawner, bench.spec(script))
            assert sorted(found.split()) == ["/build/left", "/dev/shm/left", "/tmp/left", "l"]

    with_spawner(go)


def test_a_file_that_was_replaced_is_the_new_one(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "file"

    def spec() -> SandboxSpec:
        base = bench.spec("busybox cat /file")
        return replace(base, binds=(*base.binds, Bind(source=os.fsencode(file), target=b"/file")))

    async def go(spawner: Spawner) -> None:
        file.write_text("old")
        for _ in range(3):
            assert await output(bench, spawner, spec()) == "old"
        os.rename(file, tmp_path / "kept")  # so that its inode isn't used again
        file.write_text("new")
        for _ in range(3):
            assert await output(bench, spawner, spec()) == "new"
        file.write_text("newer")
        assert await output(bench, spawner, spec()) == "newer"
        file.unlink()
        os.symlink("/etc/passwd", file)
        assert "me:x" in await output(bench, spawner, spec())

    with_spawner(go)


def test_other_files_and_groups_have_other_templates(bench: Bench) -> None:
    async def go(spawner: Spawner) -> None:
        for round_ in range(3):
            for text in (b"one", b"two"):
                files = (File(path=b"/etc/name", content=text),)
                spec = replace(bench.spec("busybox cat /etc/name"), files=files)
                assert await output(bench, spawner, spec) == text.decode()
            other = replace(bench.spec("busybox stat -c %g /"), host_gid=UID + 1)
            assert await output(bench, spawner, other) == "100\n", round_
        assert templates(spawner) == 3

    with_spawner(go)


def test_old_templates_are_given_up(bench: Bench) -> None:
    async def go(spawner: Spawner) -> None:
        for number in range(24):
            files = (File(path=b"/etc/name", content=b"%d" % number),)
            for _ in range(3):
                spec = replace(bench.spec("busybox cat /etc/name"), files=files)
                assert await output(bench, spawner, spec) == str(number)
        assert templates(spawner) == 16

    with_spawner(go)


def test_more_inputs_than_descriptors_at_once(bench: Bench, tmp_path: Path) -> None:
    inputs = []
    for number in range(600):
        source = tmp_path / f"input-{number}"
        if number % 3 == 0:
            source.mkdir()
            (source / "in").write_text(str(number))
        elif number % 3 == 1:
            source.write_text(str(number))
        else:
            os.symlink("input-0", source)
        inputs.append(InputPath(source=os.fsencode(source), name=os.fsencode(source.name)))
    script = """
        cd /nix/store; set -- *; echo $#
        busybox cat input-599 > /dev/null 2>&1 || busybox readlink input-599
        busybox cat input-597/in input-598; echo
        echo x 2>/dev/null > input-597/in || echo read-only"""

    async def go(spawner: Spawner) -> None:
        for _ in range(3):
            spec = replace(bench.spec(script), inputs=tuple(inputs))
            found = await output(bench, spawner, spec)
            assert found.split() == ["600", "input-0", "597598", "read-only"]
        assert templates(spawner) == 1

    with_spawner(go)


def test_host_directories_are_never_in_a_template(bench: Bench, tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()

    async def go(spawner: Spawner) -> None:
        for _ in range(3):
            base = bench.spec("busybox ls /directory")
            shown = Bind(source=os.fsencode(directory), target=b"/directory")
            assert await output(bench, spawner, replace(base, binds=(*base.binds, shown))) == ""
        assert templates(spawner) == 0

    with_spawner(go)


def test_a_split_plan_is_the_whole_plan(bench: Bench) -> None:
    spec = bench.spec("true")
    halves = split_plan(spec)
    assert halves is not None
    mounted = [item.target for item in halves.own if isinstance(item, BindPath | MountFileSystem)]
    points = tuple(MakeDirectory(target) for target in mounted)
    assert halves.shared[: len(points)] == points
    rest = halves.shared[len(points) :]
    assert sorted(map(repr, (*rest, *halves.own))) == sorted(map(repr, make_plan(spec)))
    writable = [item for item in halves.shared if isinstance(item, BindPath) and not item.read_only]
    assert writable == []
    assert not any(isinstance(item, MountFileSystem) for item in halves.shared)


@pytest.mark.parametrize("target", [b"/tmp/x", b"/build/x", b"/nix/store/x", b"/dev/shm/x"])
def test_what_lies_in_a_place_of_ones_own_is_not_shared(bench: Bench, target: bytes) -> None:
    spec = replace(bench.spec("true"), binds=(Bind(source=BUSYBOX, target=target),))
    assert split_plan(spec) is None
