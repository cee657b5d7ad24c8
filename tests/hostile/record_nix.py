"""Tries the probe and the attacks on stock Nix, and records what came of it.

    python -m tests.hostile.record_nix TREE [PATTERN]

TREE is the root of a Linux system with Nix, or / for this one. What is found goes to
``golden/nix-VERSION.txt``, two like it for other kinds of builds, and
``golden/attacks-nix-VERSION.txt``, or to the terminal if a PATTERN says which attacks are meant. It
is kept in the repository because CI has another Nix; ``docs/beside-nix.md`` shows it beside what
this executor answers. Run as root.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.build.conftest import Drv
from tests.hostile.attacks import ATTACKS, PROGRAMS
from tests.hostile.attempts import PLACE, Attack, Attempt, Side, verdict
from tests.hostile.golden_files import GOLDEN
from tests.hostile.probes import PROBES, compile_attack, compile_probe

PROFILES = {"ordinary": "ordinary", "fixed-output": "fixed", "uid-range": "uid-range"}
_AUTOMATIC_IDS = range(1_200_000_000, 1_200_000_000 + 128 * 65536)
# Enters a tree as its root, in mounts of its own; the machine's own file systems are there too.
_ENTER = f"""
mount --make-rprivate /; mount --bind / "$2/host"; mount --bind "$1" "$1"; cd "$1"
for d in dev sys proc {PLACE[1:]}; do mount --rbind "/$d" "$d"; done
for f in passwd group; do mount --bind "$2/$f" "etc/$f"; done
mkdir -p old; pivot_root . old; umount -l /old; cd /; shift 2; exec "$@"
"""
# Nix kills all processes of a build user, so these are nobody else's on this machine.
_USERS = range(31_201, 31_209)
_GROUP = "recording"


class Nix(Side):
    """Stock Nix: as root, with its sandbox and its build users, by the settings of its manual."""

    ids = (_USERS, _AUTOMATIC_IDS)
    config: Mapping[str, str] = {
        "sandbox": "true",
        "sandbox-fallback": "false",
        "build-users-group": _GROUP,
        "fsync-metadata": "false",
        "start-id": str(_AUTOMATIC_IDS.start),
        "id-count": str(len(_AUTOMATIC_IDS)),
    }
    only_here: Mapping[str, str] = {}
    for_ranges: Mapping[str, str] = {"use-cgroups": "true"}

    def __init__(self, tree: str, accounts: Path) -> None:
        names = [f"{_GROUP}{uid}" for uid in _USERS]
        users = [
            f"{name}:x:{uid}:{_USERS.stop}::/var/empty:/bin/false"
            for name, uid in zip(names, _USERS, strict=True)
        ]
        group = f"{_GROUP}:x:{_USERS.stop}:{','.join(names)}"
        for file, more in (("passwd", users), ("group", [group])):
            text = Path(tree, "etc", file).read_text()
            (accounts / file).write_text(text + "".join(f"{line}\n" for line in more))
        self.host = accounts / "host"
        self.host.mkdir()
        self.prefix = ("unshare", "-m", "sh", "-ec", _ENTER, "sh", tree, str(accounts))

    @property
    def version(self) -> str:
        command = [*self.prefix, "nix", "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.split()[-1]

    def command(self, root: Path, drv: Drv, attack: Attack) -> list[str]:
        keep = ["--keep-failed"] if attack.keeps_failed else []
        return ["nix-store", "--store", str(root), "--realise", drv.text, *keep]


def record_probe(nix: Nix, tools: Path, kind: str) -> dict[str, str]:
    """What the probe prints as a builder, for 64 and for 32 bits."""
    found = {}
    for bits in PROBES:
        paths = {"busybox": tools / "busybox", "probe": tools / f"probe-{bits}"}
        probe = Attack("probe", (), "exec /bin/probe calls", lambda _seen: [], kind=kind)
        with tempfile.TemporaryDirectory(prefix="probe-", dir=PLACE) as directory:
            Path(directory).chmod(0o755)
            seen = Attempt(nix, probe, Path(directory), paths).run()
        if not any(line.startswith("nested_proc ") for line in seen.lines):
            sys.exit(f"the probe could not be built:\n{seen.message}")
        for line in seen.lines:
            name, convention, answer = line.split()
            found[f"{bits} {name} {convention}"] = answer
    return found


def record_attacks(nix: Nix, tools: Path, pattern: str) -> list[str]:
    """A line an attack: its name, and the verdict."""
    paths = {name: tools / name for name in ("busybox", "attack")}
    lines = []
    for attack in ATTACKS:
        if pattern in attack.name:
            lines.append(f"{attack.name}: {verdict(nix, attack, paths)}")
            print(lines[-1], flush=True)
    return lines


def record_programs(nix: Nix, tools: Path) -> list[str]:
    """A line a thing that programs do: its name, and the answer."""
    shutil.copy(Path(__file__).with_name("programs.py"), tools)
    paths = {name: tools / name for name in ("busybox", "programs.py")}
    with tempfile.TemporaryDirectory(prefix="programs-", dir=PLACE) as directory:
        Path(directory).chmod(0o755)
        seen = Attempt(nix, PROGRAMS, Path(directory), paths).run()
    if not seen.success:
        sys.exit(f"the programs could not be run:\n{seen.message}")
    return seen.lines


def write(name: str, what: str, lines: list[str]) -> None:
    """A file of golden answers."""
    text = f"# Recorded by tests/hostile/record_nix.py: {what}.\n" + "\n".join(lines) + "\n"
    (GOLDEN / f"{name}.txt").write_text(text)


def record_probes(nix: Nix, tools: Path) -> None:
    """All profiles; those but the first as what differs from it."""
    name = f"nix-{nix.version}"
    plain: dict[str, str] = {}
    for profile, kind in PROFILES.items():
        found = record_probe(nix, tools, kind)
        own = [f"{key} {answer}" for key, answer in found.items() if plain.get(key) != answer]
        if plain:
            own.insert(0, f"like {name}.txt")
        plain = plain or found
        suffix = "" if profile == "ordinary" else f"-{profile}"
        write(name + suffix, "bits of the program, call, convention, answer", own)


def main() -> None:
    """Record, or show what some attacks get."""
    pattern = sys.argv[2] if len(sys.argv) > 2 else ""
    with tempfile.TemporaryDirectory(prefix="tools-", dir=PLACE) as directory:
        tools = Path(directory)
        tools.chmod(0o755)
        nix = Nix(sys.argv[1], tools)
        shutil.copy("/bin/busybox", tools / "busybox")
        compile_attack(tools)
        for bits in PROBES:
            compile_probe(tools, bits)
        if not pattern:
            record_probes(nix, tools)
        lines = record_attacks(nix, tools, pattern)
        if not pattern:
            write(f"attacks-nix-{nix.version}", "attack: verdict", lines)
            write(f"programs-nix-{nix.version}", "what: answer", record_programs(nix, tools))


if __name__ == "__main__":
    main()
