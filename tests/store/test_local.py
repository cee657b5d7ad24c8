"""LocalStore with stock Nix on the same store at the same moment, both ways."""

import io
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from executor.derivation import unparse_derivation
from executor.errors import InvalidPathError, StoreError
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm, hash_bytes
from executor.formats.store_path import StorePath
from executor.store.canonicalise import canonicalise_and_describe, describe_tree
from executor.store.errors import HashMismatchError, PathInUseError, UnacceptableTreeError
from executor.store.local import LocalStore, StoreSettings
from executor.store.location import StoreLocation, parse_store_url
from executor.store.path_info import PathInfo
from executor.store.tree import dump_tree

from .conftest import Nix

_EXPRESSION = """
let base = { system = "x86_64-linux"; builder = "/bin/sh"; };
    src = builtins.toFile "src" "text";
    fod = derivation (base // { name = "fod"; outputHashMode = "flat"; outputHashAlgo = "sha256";
      outputHash = "0000000000000000000000000000000000000000000000000000"; });
    one = derivation (base // { name = "one"; outputs = [ "out" "dev" ]; inherit src fod; });
in derivation (base // { name = "top"; args = [ one.dev src ]; })
"""


def _instantiate(nix: Nix) -> StorePath:
    command = ["nix-instantiate", "--store", str(nix.root), "-E", _EXPRESSION]
    done = subprocess.run(command, env=nix.environment(), capture_output=True, check=True)
    return StorePath.parse(done.stdout.decode().strip().removeprefix("/nix/store/"))


def _make_output(store: LocalStore, name: str, contents: bytes) -> StorePath:
    """A path as a build would leave it: made aside, canonical, moved to its place."""
    path = StorePath("0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k"[:-3] + "abc", name)
    path = replace(path, digest=path.digest[: -len(name)] + "a" * len(name))
    with open(store.real_path(path), "wb") as file:
        file.write(contents)
    return path


def _register(
    store: LocalStore, path: StorePath, references: frozenset[StorePath] = frozenset()
) -> PathInfo:
    described = canonicalise_and_describe(store.store_fd, path.base_name.encode())
    return PathInfo(
        path=path,
        nar_hash=described.nar_hash,
        nar_size=described.nar_size,
        references=references,
        ultimate=True,
    )


@pytest.mark.nix
def test_text_and_files_have_the_paths_that_nix_gives(
    store: LocalStore, nix: Nix, scratch: Path
) -> None:
    tree = scratch / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "run").write_text("#!")
    (tree / "run").chmod(0o755)
    (tree / "link").symlink_to("run")
    (scratch / "file").write_text("contents")
    (scratch / "file").chmod(0o755)
    ours = [
        store.add_file_or_tree("tree", str(tree)),
        store.add_file_or_tree("file", os.fsencode(scratch / "file")),
        store.add_file_or_tree("link", str(tree / "link")),
        store.add_file_or_tree("file", str(scratch / "file"), IngestionMethod.FLAT),
    ]
    theirs = [
        nix.run("nix-store", "--add", str(tree)),
        nix.run("nix-store", "--add", str(scratch / "file")),
        nix.run("nix-store", "--add", str(tree / "link")),
        nix.run("nix-store", "--add-fixed", "sha256", str(scratch / "file")),
    ]
    assert [store.store_dir.render(path) for path in ours] == theirs
    assert nix.verify() == ""
    assert store.verify(check_contents=True) == []


@pytest.mark.nix
def test_rows_are_those_of_nix(store: LocalStore, nix: Nix, scratch: Path) -> None:
    """The same objects, added by either program, differ only in the time of registration."""
    other = Nix(scratch / "other")
    (scratch / "file").write_text("contents")
    drv_path = _instantiate(other)
    other.run("nix-store", "--add", str(scratch / "file"))
    query = "select v.path, hash, deriver, narSize, ultimate, sigs, ca from ValidPaths v"
    with LocalStore.open(parse_store_url(str(other.root), {})) as source:
        closure = source.closure([drv_path])
        order = ["src", "fod.drv", "one.drv", "top.drv"]
        for path in sorted(closure, key=lambda path: order.index(path.name)):
            info = source.query_path_info(path)
            with open(source.real_path(path), "rb") as file:
                assert store.add_text(path.name, file.read(), info.references) == path
        store.add_file_or_tree("file", str(scratch / "file"))
        theirs = source._database._all(query + " order by path")
        outputs = (
            "select v.path, d.id, d.path from DerivationOutputs d, ValidPaths v where d.drv = v.id"
        )
        their_outputs = sorted(source._database._all(outputs))
    assert store._database._all(query + " order by path") == theirs
    assert sorted(store._database._all(outputs)) == their_outputs
    assert nix.verify() == ""


@pytest.mark.nix
def test_answers_are_those_of_nix(nix: Nix, store: LocalStore) -> None:
    top = _instantiate(nix)
    closure = store.closure([top])
    assert closure == store.query_all_valid()
    render = store.store_dir.render

    def ask(*question: str) -> set[str]:
        return set(nix.run("nix-store", "--query", *question).split())

    assert ask("--requisites", render(top)) == {render(path) for path in closure}
    for path in closure:
        info = store.query_path_info(path)
        assert ask("--references", render(path)) == {render(ref) for ref in info.references}
        assert ask("--hash", render(path)) == {info.nar_hash.prefixed32}
        assert ask("--size", render(path)) == {str(info.nar_size)}
        referrers = store.query_referrers(path)
        assert ask("--referrers", render(path)) == {render(ref) for ref in referrers}
        reverse = store.closure([path], reverse=True)
        assert ask("--referrers-closure", render(path)) == {render(ref) for ref in reverse}
        assert store.path_from_hash_part(path.digest) == path
        if path.is_derivation:
            outputs = store.query_outputs(path)
            assert ask("--outputs", render(path)) == {render(out) for out in outputs.values()}
            for output in outputs.values():
                assert store.query_derivers(output) == {path}
    infos = store.query_path_infos(closure)
    assert infos == {path: store.query_path_info(path) for path in closure}


@pytest.mark.nix
def test_derivations_of_nix_are_read_and_written_back(nix: Nix, store: LocalStore) -> None:
    top = _instantiate(nix)
    derivation = store.read_derivation(top)
    assert store.read_derivation(top) is derivation
    assert set(derivation.outputs) == {"out"}
    with open(store.real_path(top), "rb") as file:
        assert unparse_derivation(derivation, store.store_dir) == file.read()
    assert store.write_derivation(derivation) == top
    store.invalidate(top)
    assert not store.is_valid(top)
    assert store.write_derivation(derivation) == top
    assert nix.verify() == ""


def test_unknown_paths(store: LocalStore) -> None:
    path = StorePath.parse("0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-a.drv")
    assert not store.is_valid(path)
    assert store.query_valid([path]) == set()
    assert store.query_referrers(path) == set()
    assert store.path_from_hash_part(path.digest) is None
    for ask in (store.query_path_info, store.query_outputs, store.query_deriver):
        with pytest.raises(InvalidPathError):
            ask(path)
    with pytest.raises(InvalidPathError):
        store.closure([path])
    with pytest.raises(InvalidPathError):
        store.query_path_infos([path])
    with pytest.raises(StoreError):
        store.read_derivation(path)
    for part in ("", "0", "%" * 31, path.digest + "0"):
        with pytest.raises(StoreError):
            store.path_from_hash_part(part)
    assert store.path_from_hash_part("%" * 32) is None


@pytest.mark.nix
def test_registered_together(store: LocalStore, nix: Nix) -> None:
    """Outputs of one build: a reference among them, one to itself, one to an older path."""
    source = store.add_text("source", b"")
    out, dev = _make_output(store, "out", b"out"), _make_output(store, "dev", b"dev")
    infos = [
        _register(store, dev, frozenset({out, source})),
        _register(store, out, frozenset({out})),
    ]
    before = int(time.time())
    store.register(infos)
    assert store.closure([dev]) == {out, dev, source}
    info = store.query_path_info(out)
    assert info.ultimate
    assert before <= info.registration_time <= time.time()
    assert replace(info, registration_time=0) == infos[1]
    assert nix.verify() == ""
    store.register([replace(infos[1], signatures=("b:1", "a:1"))])
    assert store.query_path_info(out).signatures == ("a:1", "b:1")
    store.add_signatures(out, ["c:1", "a:1"])
    assert store.query_path_info(out).signatures == ("a:1", "b:1", "c:1")
    with pytest.raises(PathInUseError, match="in use by"):
        store.invalidate(source)
    store.invalidate(dev)
    store.invalidate(out)
    assert store.query_all_valid() == {source}


def test_nothing_is_registered_after_an_error(store: LocalStore) -> None:
    out, dev = _make_output(store, "out", b"out"), _make_output(store, "dev", b"dev")
    missing = StorePath.parse("0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-missing")
    good = _register(store, out)
    with pytest.raises(InvalidPathError, match="missing"):
        store.register([good, _register(store, dev, frozenset({missing}))])
    cycle = [_register(store, out, frozenset({dev})), _register(store, dev, frozenset({out}))]
    with pytest.raises(UnacceptableTreeError, match="cycle detected"):
        store.register(cycle)
    forged = replace(good, content_address="fixed:r:" + good.nar_hash.prefixed32)
    with pytest.raises(StoreError, match="claims to be content-addressed"):
        store.register([_register(store, dev), forged])
    weak = replace(good, nar_hash=hash_bytes(HashAlgorithm.SHA1, b""))
    with pytest.raises(StoreError, match="SHA-256"):
        store.register([weak])
    assert store.query_all_valid() == set()


@pytest.mark.nix
def test_forged_derivations_are_refused(store: LocalStore, nix: Nix) -> None:
    top = _instantiate(nix)
    with open(store.real_path(top), "rb") as file:
        data = file.read()
    references = store.query_path_info(top).references
    out = store.query_outputs(top)["out"]
    forged = data.replace(out.digest.encode(), b"1" * 32)
    with pytest.raises(StoreError, match="wrong output paths"):
        store.add_text("top.drv", forged, references)
    with pytest.raises(StoreError, match="parsing derivation"):
        store.add_text("top.drv", data[:-1], references)
    with pytest.raises(StoreError, match="wrong output paths"):
        store.add_text("renamed.drv", data, references)
    assert store.closure([top]) == store.query_all_valid()
    assert nix.verify() == ""


def test_nar_in_and_out(store: LocalStore, scratch: Path) -> None:
    (scratch / "tree").mkdir()
    (scratch / "tree/file").write_text("x" * 100_000)
    path = store.add_file_or_tree("tree", str(scratch / "tree"))
    info = store.query_path_info(path)
    nar = io.BytesIO()
    dump_tree(store.store_fd, path.base_name.encode(), nar.write)
    with LocalStore.open(parse_store_url(str(scratch / "other"), {})) as other:
        for wrong in (
            replace(info, nar_hash=hash_bytes(HashAlgorithm.SHA256, b"")),
            replace(info, nar_size=info.nar_size + 8),
            replace(info, nar_size=info.nar_size - 8),
        ):
            with pytest.raises(HashMismatchError):
                other.add_nar(wrong, io.BytesIO(nar.getvalue()))
            assert os.listdir(other.location.real_store_dir) == [".links"]
        for _ in range(2):
            stream = io.BytesIO(nar.getvalue() + b"rest")
            other.add_nar(info, stream)
            assert stream.read() == b"rest"
        assert other.verify(check_contents=True) == []
        assert replace(other.query_path_info(path), registration_time=0) == replace(
            info, registration_time=0
        )


def test_leftover_at_the_path_is_replaced(store: LocalStore, scratch: Path) -> None:
    victim = scratch / "victim"
    victim.mkdir()
    (victim / "kept").touch()
    path = store.add_text("x", b"x")
    for kind in ("link", "directory", "fifo"):
        store.invalidate(path)
        os.unlink(store.real_path(path))
        match kind:
            case "link":
                os.symlink(victim, store.real_path(path))
            case "directory":
                os.makedirs(store.real_path(path) + "/sub", mode=0o500)
            case _:
                os.mkfifo(store.real_path(path))
        assert store.add_text("x", b"x") == path
        assert Path(store.real_path(path)).read_bytes() == b"x"
    assert (victim / "kept").exists()


@pytest.mark.parametrize("settings", [StoreSettings(), StoreSettings(fsync_store_paths=True)])
def test_move_into_store(location: StoreLocation, settings: StoreSettings) -> None:
    with LocalStore.open(location, settings=settings) as store:
        path = StorePath.parse("0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-x")
        aside = f"{location.real_store_dir}/aside"
        os.mkdir(aside)
        os.mkdir(f"{aside}/x")
        fd = os.open(aside, os.O_RDONLY)
        described = canonicalise_and_describe(fd, b"x")
        store.move_into_store(fd, b"x", path)
        os.close(fd)
        os.rmdir(aside)
        assert describe_tree(store.store_fd, path.base_name.encode()) == described


def test_verify_reports_each_kind_of_damage(store: LocalStore, scratch: Path) -> None:
    (scratch / "tree").mkdir()
    (scratch / "tree/f").write_text("contents")
    tree = Path(store.real_path(store.add_file_or_tree("tree", str(scratch / "tree"))))
    assert store.verify(check_contents=True) == []
    file = tree / "f"

    def problems() -> str:
        return "\n".join(store.verify(check_contents=True))

    file.write_text("contentS")
    os.utime(file, (1, 1))
    assert "was modified! expected hash 'sha256:" in problems()
    file.write_text("contents")
    assert "another modification time" in problems()
    os.utime(file, (1, 1))
    file.chmod(0o644)
    assert "mode 0644" in problems()
    file.chmod(0o444)
    if os.geteuid() == 0:
        os.setxattr(file, "user.x", b"1")
        assert "extended attributes (user.x)" in problems()
        os.removexattr(file, "user.x")
    assert problems() == ""
    os.mkfifo(tree / "p")
    assert "unsupported type" in problems()


def test_verify_forgets_what_disappeared(store: LocalStore) -> None:
    bottom = store.add_text("bottom", b"")
    top = store.add_text("top", b"", [bottom])
    os.unlink(store.real_path(bottom))
    assert "still has valid referrers" in "\n".join(store.verify())
    os.unlink(store.real_path(top))
    lines: list[str] = []
    assert store.verify(report=lines.append) == []
    assert sum("disappeared, removing" in line for line in lines) == 2
    assert store.query_all_valid() == set()


_KILLED = """
import os, sys
from executor.store import add, database, locks, register
from executor.store.local import LocalStore
from executor.store.location import parse_store_url
root, tree, step = sys.argv[1], sys.argv[2], sys.argv[3]
store = LocalStore.open(parse_store_url(root, {}))
def kill(*_arguments, **_named):
    os.kill(os.getpid(), 9)
match step:
    case "scratch": add._copy_in = kill
    case "copied": add.describe_tree = kill
    case "locked": add.delete_tree = kill
    case "moving": add.move_tree = kill
    case "moved": register.Registrar.register = kill
    case "row": database.Database.insert_references = kill
    case "written": register.check_no_cycle = kill
    case "committed": locks.PathLocks.release = kill
store.add_file_or_tree("tree", tree)
"""
_STEPS = ["scratch", "copied", "locked", "moving", "moved", "row", "written", "committed"]


@pytest.mark.nix
@pytest.mark.parametrize("step", _STEPS)
def test_killed_at_any_step(store: LocalStore, nix: Nix, scratch: Path, step: str) -> None:
    (scratch / "tree").mkdir()
    (scratch / "tree/file").write_text("x")
    script = [sys.executable, "-c", _KILLED, str(nix.root), str(scratch / "tree"), step]
    done = subprocess.run(script, check=False)
    assert done.returncode == -9
    assert nix.verify() == ""
    before = store.query_all_valid()
    path = store.add_file_or_tree("tree", str(scratch / "tree"))
    assert before == ({path} if step == "committed" else set())
    assert store.verify(check_contents=True) == []
    assert nix.verify() == ""
    nix.run("nix-store", "--gc")
    left = {name for name in os.listdir(nix.root / "nix/store") if not name.endswith(".lock")}
    assert left == {".links", path.base_name}


@pytest.mark.root
@pytest.mark.nix
def test_unprivileged_store(scratch: Path, nix: Nix) -> None:
    """A store of an ordinary user, who may not override modes: trees still get in and out."""
    script = (
        "import os, subprocess, sys\n"
        "from executor.store.local import LocalStore\n"
        "from executor.store.location import parse_store_url\n"
        # Before the user changes, who may not be able to enter the checkout.
        "import executor.store.add, executor.store.verify\n"
        "LocalStore.open(parse_store_url(sys.argv[1], {})).close()\n"
        "subprocess.run(['chown', '-R', '30011:30011', sys.argv[3]], check=True)\n"
        "os.setgroups([]); os.setgid(30011); os.setuid(30011)\n"
        "os.makedirs(sys.argv[2] + '/a/b')\n"
        "open(sys.argv[2] + '/a/b/f', 'w').close()\n"
        "with LocalStore.open(parse_store_url(sys.argv[1], {})) as store:\n"
        "    path = store.add_file_or_tree('tree', sys.argv[2])\n"
        "    assert store.verify(check_contents=True) == []\n"
        "    store.invalidate(path)\n"
        "    os.chmod(store.real_path(path) + '/a', 0)\n"
        "    assert store.add_file_or_tree('tree', sys.argv[2]) == path\n"
        "    assert store.verify(check_contents=True) == []\n"
        "    print(path.base_name)\n"
    )
    for directory in (scratch, *scratch.parents[:3]):
        directory.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script, str(nix.root), str(scratch / "tree"), str(scratch)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == Path(nix.run("nix-store", "--add", str(scratch / "tree"))).name


def test_many_processes_add_the_same_and_different(store: LocalStore, nix: Nix) -> None:
    script = (
        "import sys\n"
        "from executor.store.local import LocalStore\n"
        "from executor.store.location import parse_store_url\n"
        "with LocalStore.open(parse_store_url(sys.argv[1], {})) as store:\n"
        "    last = store.add_text('shared', b'')\n"
        "    for number in range(30):\n"
        "        last = store.add_text(f'n{number}-{sys.argv[2]}', b'x', [last])\n"
        "        store.add_text(f'm{number}', b'y')\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(nix.root), str(number)])
        for number in range(4)
    ]
    assert [process.wait() for process in running] == [0] * 4
    assert len(store.query_all_valid()) == 1 + 4 * 30 + 30
    assert store.verify(check_contents=True) == []


@pytest.mark.nix
def test_nix_adds_and_collects_meanwhile(store: LocalStore, nix: Nix, scratch: Path) -> None:
    """Both add the same and different files while collectors of Nix run: ours all stay."""
    for number in range(12):
        (scratch / f"f{number}").write_text(f"{number}")
    loop = (
        "for round in 1 2 3; do for n in 0 1 2 3 4 5; do "
        'nix-store --store "$1" --add "$2/f$n" || exit 1; done; '
        'nix-store --store "$1" --gc || exit 1; done'
    )
    nix_process = subprocess.Popen(
        ["sh", "-c", loop, "sh", str(nix.root), str(scratch)],
        env=nix.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    ours = set()
    while nix_process.poll() is None:
        for number in range(12):
            ours.add(store.add_file_or_tree(f"f{number}", str(scratch / f"f{number}")))
            ours.add(store.add_text(f"t{number}", os.urandom(8)))
    stderr = nix_process.communicate()[1].decode()
    assert nix_process.returncode == 0, stderr
    assert store.query_valid(ours) == ours
    assert nix.verify() == ""
    assert store.verify(check_contents=True) == []


def test_waits_for_a_writer(store: LocalStore) -> None:
    with LocalStore.open(store.location) as other:
        path = store.add_text("x", b"x")
        with store._database.transaction():
            # A reader isn't held up by somebody's open transaction.
            assert other.is_valid(path)


def test_big_closures_are_quick(store: LocalStore) -> None:
    """2,000 paths with 20 references each: milliseconds, not a query for each path."""
    empty = hash_bytes(HashAlgorithm.SHA256, b"")
    paths = [
        StorePath("0c5b4rqqbwqhhp30jhjlh2bjzrpz" + f"{number:04}".translate({101: "a"}), "x")
        for number in range(2000)
    ]
    infos = [
        PathInfo(
            path=path,
            nar_hash=empty,
            nar_size=1,
            references=frozenset(paths[max(0, number - 20) : number]),
        )
        for number, path in enumerate(paths)
    ]
    store.register(infos)
    start = time.perf_counter()
    assert len(store.closure([paths[-1]])) == 2000
    assert len(store.query_path_infos(paths)) == 2000
    assert len(store.query_valid(paths)) == 2000
    assert time.perf_counter() - start < 1.0
