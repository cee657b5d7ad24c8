"""Configuration: nix.conf, lists of machines."""

from __future__ import annotations

from collections.abc import Hashable

from executor.build.machines import has_machines
from executor.config import load_settings
from executor.errors import ConfigError
from executor.host import Host
from tests.fuzz.harness import Target
from tests.fuzz.targets.names import text_of

_HOST = Host(
    system="x86_64-linux",
    extra_platforms=frozenset({"i686-linux"}),
    features=frozenset({"kvm"}),
    shell="/bin/busybox",
    certificates="",
)
_CONFIGURATION = b"""# comment
max-jobs = auto
cores = 4
sandbox = true
sandbox-paths = /bin/sh=/bin/busybox:ro /dev/kvm? /etc/x
extra-sandbox-paths = /a=/b
substituters = https://cache.nixos.org/ file:///x
max-log-size = 10M
timeout = 3600
include other.conf
!include none.conf
trusted-public-keys = a:b c:d
system-features = kvm
impure-env = A=b
keep-outputs = yes
"""
_MACHINES = b"""ssh://mac x86_64-darwin # comment
ssh-ng://a@b x86_64-linux,i686-linux /etc/key 4 2 kvm,big mandatory c3NoLQ== ; @/etc/nix/machines
"""


def _read_file(path: str) -> str:
    if path.startswith("/etc/nix/other.conf"):
        return "keep-derivations = false\n!include more.conf\n"
    # What the system would say of such a name.
    if "\0" in path:
        raise ValueError("embedded null byte")
    raise FileNotFoundError(2, "No such file or directory", path)


def _configuration(data: bytes) -> Hashable:
    text = text_of(data)

    def read_file(path: str) -> str:
        return text if path == "/etc/nix/nix.conf" else _read_file(path)

    environ = {"NIX_CONF_DIR": "/etc/nix"}
    loaded = load_settings(environ=environ, host=_HOST, read_file=read_file)
    return len(loaded.warnings) > 1, min(len(loaded.settings.sandbox_paths), 9)


def _machines(data: bytes) -> Hashable:
    text = text_of(data)

    def read_file(path: str) -> str:
        return text if path == "/etc/nix/machines" else _read_file(path)

    return has_machines(text, read_file)


TARGETS = (
    Target(
        name="configuration",
        run=_configuration,
        errors=(ConfigError,),
        inputs=(_CONFIGURATION,),
        tokens=(
            *(b" = ", b"\n", b"#", b"include ", b"!include ", b"extra-", b":ro", b"?", b"auto"),
            *(b"sandbox = false", b"max-jobs = ", b"cores = ", b"log-lines = ", b"1T", b"/../x"),
            *(b"include nix.conf\n", b"include /etc/nix/nix.conf\n", b"include other.conf\n"),
        ),
    ),
    Target(
        name="machines",
        run=_machines,
        errors=(),
        inputs=(_MACHINES, b"# none\n\n;;", b"@/etc/nix/machines"),
        tokens=(b"@", b"@/etc/nix/machines\n", b";", b"\n", b"#", b"\0"),
    ),
)
