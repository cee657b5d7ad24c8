"""What this machine is: its systems, its features, the sandbox's shell."""

from __future__ import annotations

import os
from dataclasses import dataclass

_BASE_FEATURES = frozenset({"nixos-test", "benchmark", "big-parallel", "uid-range"})
_SHELLS = ("/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox")
_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/nix/var/nix/profiles/default/etc/ssl/certs/ca-bundle.crt",
)
# Flags that make a level of x86-64 (psABI, as Linux names them in /proc/cpuinfo).
_LEVELS = (
    ("v2", frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})),
    ("v3", frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"})),
    ("v4", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Defaults that depend on the machine."""

    system: str
    extra_platforms: frozenset[str]
    features: frozenset[str]
    shell: str
    certificates: str


def detect_host() -> Host:
    """Look at this machine; cheap enough for every start."""
    machine = os.uname().machine
    return Host(
        system=f"{machine}-linux",
        extra_platforms=_extra_platforms(machine),
        features=_BASE_FEATURES | ({"kvm"} if _kvm_usable() else frozenset()),
        shell=_first_existing(_SHELLS),
        certificates=_first_existing(_CERTIFICATES),
    )


def _extra_platforms(machine: str) -> frozenset[str]:
    if machine != "x86_64":
        return frozenset({"armv7l-linux"} if machine == "aarch64" else ())
    flags = _cpu_flags()
    found = {"i686-linux", "x86_64-v1-linux"}
    for level, needed in _LEVELS:
        if not needed <= flags:
            break
        found.add(f"x86_64-{level}-linux")
    return frozenset(found)


def _cpu_flags() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("flags"):
                    return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def _kvm_usable() -> bool:
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def _first_existing(paths: tuple[str, ...]) -> str:
    return next((path for path in paths if os.path.exists(path)), "")
