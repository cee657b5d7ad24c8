"""Who says what an attack got: each returns what came through, in words, or nothing.

The first kind of judge sees how an attempt ended, the second (of a :class:`Scene`) looks on while
the builder waits.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tests.hostile.attempts import Scene, Seen
from tests.hostile.inside import as_user

_STRANGER = 65_534
_MISSING = "No such file"
Judge = Callable[[Seen], list[str]]


def victims(seen: Seen) -> list[str]:
    """For attacks that only aim at files of the host."""
    assert "tried" in seen.lines, seen.message
    return ["files of the host are changed"] if seen.victims_changed else []


def silent(*allowed: str) -> Judge:
    """For scripts that print what they got."""

    def judge(seen: Seen) -> list[str]:
        assert seen.success, seen.message
        return [line for line in seen.lines if line not in allowed]

    return judge


def worked(**meaning: str) -> Judge:
    """For programs that print what each call answered: what it means that one did."""

    def judge(seen: Seen) -> list[str]:
        assert seen.lines, seen.message
        return [text for name, text in meaning.items() if seen.answers[name] == "OK"]

    return judge


def says(pattern: str, text: str) -> Judge:
    """Held if the output matches; what it means that it doesn't."""
    return lambda seen: [] if re.fullmatch(pattern, "\n".join(seen.lines), re.DOTALL) else [text]


def nothing_said(seen: Seen) -> list[str]:
    """For builds that may be refused, or confined as ever."""
    assert seen.success or "__noChroot" in seen.message, seen.message
    return ["it is not confined"] if seen.lines else []


def nothing_works(seen: Seen) -> list[str]:
    """For programs whose every call has to be refused; the last of "hunt" is about its own."""
    assert seen.answers, seen.message
    worked = [name for name, answer in seen.answers.items() if answer == "OK"]
    return [f"{name} works" for name in worked if name != "kill_all"]


def found(seen: Seen) -> list[str]:
    assert seen.success, seen.message
    return seen.found


def left_in_the_store(seen: Seen) -> list[str]:
    assert not seen.success, seen.message
    store = seen.root / "nix/store"
    lying = [path for path in store.iterdir() if path.name.endswith("-attack")]
    owned = [path for path in below(seen.root) if any(owner(path) in ids for ids in seen.ids)]
    return [
        *(["the output of a failed build stays in the store"] if lying else []),
        *(["files of the build's id stay behind"] if owned else []),
    ]


def below(top: Path) -> Iterator[Path]:
    yield top
    with suppress(OSError):
        for path in top.iterdir():
            if path.is_dir() and not path.is_symlink():
                yield from below(path)
            else:
                yield path


def owner(path: Path) -> int:
    return path.lstat().st_uid


def is_inside(seen: Seen) -> list[str]:
    assert "inside" in seen.answers.values(), seen.lines
    return [f"{name} leads out" for name, where in seen.answers.items() if where == "OUTSIDE"]


def input(seen: Seen) -> list[str]:
    assert "nested OK" in seen.lines
    ways = [line.partition(" ")[0] for line in seen.lines if line.endswith(" OK")]
    lost = [way for way in ways if way not in ("nested", "remount")]
    return [f"an input is changed by {', '.join(dict.fromkeys(lost))}"] if lost else []


def devices(seen: Seen) -> list[str]:
    made = [name for name in ("mem", "null", "disk") if seen.answers[name] == "OK"]
    text = [f"the device {name} is made" for name in made]
    if seen.answers["open_whiteout"] != "EACCES":
        text.append("devices work where builders can write (no nodev)")
    return text


def descriptors(seen: Seen) -> list[str]:
    assert "0" in seen.lines
    extra = [line for line in seen.lines if line not in ("0", "1", "2")]
    return [f"descriptors of who starts it: {' '.join(extra)}"] if extra else []


def proc(seen: Seen) -> list[str]:
    fields = seen.lines[0].split()
    missing = [flag for flag in ("nosuid", "nodev", "noexec") if flag not in fields[5].split(",")]
    foreign = len(seen.lines) > 5
    return [
        *([f"/proc is mounted without {', '.join(missing)}"] if missing else []),
        *(["processes of the host"] if foreign else []),
    ]


def outsiders(scene: Scene) -> list[str]:
    """What others on the machine reach of a running build: a stranger, and the build's own id."""
    got = []
    places = [path for path in below(scene.root) if path.is_dir() and not path.is_symlink()]
    assert any(path.name == "build" for path in places)
    inside = [place for place in places if owner(place) == scene.uid]
    assert inside
    for who, uid in (("a stranger", _STRANGER), ("the build's id outside", scene.uid)):
        for place in inside:
            with suppress(PermissionError):
                if as_user(uid, "ls", place).returncode == 0:
                    got.append(f"{who} enters {place.name}")
        for name in ("root", "cwd", "environ", "mem"):
            path = f"/proc/{scene.pid}/{name}"
            command = ["ls", f"{path}/"] if name in ("root", "cwd") else ["head", "-c1", path]
            if as_user(uid, *command).returncode == 0:
                got.append(f"{who} reads {name} of its processes")
        enter = ["nsenter", "--target", str(scene.pid), "--user", "--mount", "id"]
        if as_user(uid, *enter).returncode == 0:
            got.append(f"{who} enters its namespaces")
    return got


def set_id_on_disk(scene: Scene) -> list[str]:
    bits = stat.S_ISUID | stat.S_ISGID
    names = sorted(
        {
            path.name
            for path in below(scene.root)
            if stat.S_ISREG(path.lstat().st_mode) and path.lstat().st_mode & bits
        }
    )
    return [f"set-id files of the build's id: {', '.join(names)}"] if names else []


def kept(seen: Seen) -> list[str]:
    assert not seen.success
    builds = [path for path in below(seen.root) if path.name in ("opened", "made", "changed")]
    assert builds, seen.message
    set_id = [path.name for path in builds if path.lstat().st_mode & 0o6000]
    foreign = [path for path in builds if owner(path) != 0]
    return [
        *([f"set-id files are kept: {', '.join(sorted(set_id))}"] if set_id else []),
        *(["what is kept belongs to the build's id, which is used again"] if foreign else []),
    ]


def mapped(scene: Scene) -> list[str]:
    """The id outside."""
    _inside, outside, _count = Path(f"/proc/{scene.pid}/uid_map").read_text().split()
    return ["it runs as root"] if outside == "0" else []


def host_mounts(scene: Scene) -> list[str]:
    own = Path(f"/proc/{scene.process.pid}/mountinfo").read_text()
    return ["its mounts reach the host"] if " - tmpfs mounted-by-the-builder" in own else []


def killed(scene: Scene) -> list[str]:
    scene.process.kill()
    end = time.monotonic() + 2
    while time.monotonic() < end:
        if not Path(f"/proc/{scene.pid}").exists():
            return []
        time.sleep(0.05)
    return ["the builder runs on"]


def given_away(seen: Seen) -> list[str]:
    assert any(line.startswith(("come_in", "connect_out")) for line in seen.lines), seen.message
    got = []
    if "come_in OK" in seen.lines:
        got.append("a process of the host comes in")
    if "connect_out OK" in seen.lines:
        got.append("it connects to a process of the host")
    if seen.received and not got:
        got.append("a descriptor of the output gets out")
    if seen.content_changed:
        got.append("the registered output is changed")
    return got


def reached(seen: Seen) -> list[str]:
    assert "loopback" in seen.answers, seen.message
    return ["services of the host are reached"] if seen.visitors else []


def in_time(limit: float, text: str) -> Judge:
    """It has to be over within a time, because of the limit that was set."""

    def judge(seen: Seen) -> list[str]:
        assert seen.status is None or re.search("timed out|killed after|signal 9", seen.message), (
            seen.message
        )
        return [text] if seen.status in (None, 0) or seen.seconds > limit else []

    return judge


def unchanged(seen: Seen) -> list[str]:
    assert seen.success, seen.message
    return ["the registered output is changed"] if seen.content_changed else []


def refused(seen: Seen) -> list[str]:
    assert "tried" in seen.lines, seen.message
    assert seen.status is None or seen.status >= 0
    if seen.success:
        return ["it is accepted"]
    return ["it waits for ever"] if seen.status is None else []


def attributes(seen: Seen) -> list[str]:
    assert seen.success, seen.message
    names = os.listxattr(seen.output)
    return [f"attributes in the store: {' '.join(names)}"] if names else []


def modes(seen: Seen) -> list[str]:
    assert seen.success, seen.message
    states = [path.lstat() for path in below(seen.output)]
    wrong = [s for s in states if stat.S_IMODE(s.st_mode) not in (0o444, 0o555) or s.st_uid]
    return ["modes in the store are not canonical"] if wrong else []


def later(seen: Seen) -> list[str]:
    assert seen.lines
    assert seen.later
    lines = [line for line in seen.later if not line.endswith("ENOENT")]
    return [f"left for the next build: {' '.join(lines)}"] if lines != ["looked"] else []
