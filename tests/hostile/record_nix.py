"""Runs the probe as a builder of stock Nix, and prints what each call is answered there.

    python -m tests.hostile.record_nix [PREFIX...] > tests/hostile/golden/nix-2.34.8.txt

PREFIX is what comes before the command where Nix isn't on PATH, or not in the right version. The
result is recorded in the repository, because CI has another Nix; ``docs/security.md`` shows it
beside the table that people wrote for this sandbox. Run as root.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hostile.probes import PROBES, compile_probe

_EXPRESSION = """
derivation {
  name = "probe"; system = "x86_64-linux"; builder = "/bin/probe"; args = [ "calls" ];
}
"""
_OPTIONS = {
    "sandbox": "true",
    "sandbox-fallback": "false",
    "substituters": "",
    "build-users-group": "",
    "auto-allocate-uids": "true",
}
_SECONDS = 300
# Nix wants no directory of everybody's above its store.
_PLACE = "/run"


def record(prefix: list[str], directory: Path) -> list[str]:
    """The lines that the probes print as builders, for 64 and for 32 bits."""
    found = []
    for bits in PROBES:
        program = compile_probe(directory, bits)
        place = directory / f"store-{bits}"
        options = {**_OPTIONS, "sandbox-paths": f"/bin/probe={program}"}
        words = [word for name, value in options.items() for word in ("--option", name, value)]
        features = ("--extra-experimental-features", "auto-allocate-uids")
        command = [*prefix, "nix-build", *features, "--store", str(place), "--no-out-link", *words]
        done = subprocess.run(
            [*command, "--expr", _EXPRESSION],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            sys.exit(f"the probe could not be built:\n{done.stderr}")
        answers = [line for line in done.stderr.splitlines() if len(line.split()) == 3]
        found += [f"{bits} {line}" for line in answers if not line.endswith("...")]
    return found


def main() -> None:
    """Print the recording, with the version that it is of."""
    prefix = sys.argv[1:]
    version = subprocess.run(
        [*prefix, "nix", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    with tempfile.TemporaryDirectory(prefix="probe-", dir=_PLACE) as directory:
        lines = record(prefix, Path(directory))
    print(f"# Recorded by tests/hostile/record_nix.py under {version.stdout.strip()}:")
    print("# bits of the program, name, convention, answer.")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
