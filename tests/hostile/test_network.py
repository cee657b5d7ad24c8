"""Builds with a network of their own: what they reach, what they don't, and who notices."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from executor.build.result import FailureCause
from executor.network_rules import parse_network_rules
from tests.build.conftest import FOREVER, HOST_PROGRAMS, Run, Workshop, fixed, wait_until
from tests.hostile.netted import (
    ANYTHING,
    REFUSED,
    TRY,
    attempt,
    contacts,
    helpers,
    is_pasta,
    outcomes,
    program,
    running_build,
)
from tests.hostile.netted import meeting as meeting
from tests.hostile.netted import python as python
from tests.hostile.netted import workshop as workshop
from tests.world import MACHINE, MACHINE6, METADATA, PRIVATE, PRIVATE6, SERVER, SERVER6, World
from tests.world import world as world

pytestmark = pytest.mark.root


def test_row_048_what_is_allowed_is_reached(python: Workshop, world: World) -> None:
    port = world.listen_outside()
    targets = [f"{SERVER}/{port}", f"{SERVER6}/{port}", f"::ffff:{SERVER}/{port}"]
    run = attempt(python, *targets, f"{PRIVATE}/{port}")
    assert outcomes(run) == dict.fromkeys([*targets, f"{PRIVATE}/{port}"], "reached")
    # The outside sees the machine, not the build's own address.
    assert {peer.removeprefix("::ffff:") for peer, _port in world.peers} == {MACHINE, MACHINE6}


def test_row_048_the_loopback_of_the_host_is_never_reached(python: Workshop, world: World) -> None:
    """Not by any way to write it, whatever the rules allow; there a listener hears nothing."""
    port = world.listen("127.0.0.1")
    world.listen("::1", port)
    forms = ("127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0")
    # The gateway, the build's own address and the address for names don't stand for the host.
    own = ("192.0.0.1", "192.0.0.2", "192.0.0.3", "fd65:7865:6375:746f::1", "64:ff9b::127.0.0.1")
    targets = [f"{form}/{port}" for form in (*forms, *own)]
    drv = program(python, TRY, targets=" ".join(targets), patience="0.5")
    found = outcomes(python.build(drv, fod_network_rules=ANYTHING))
    assert [target for target, what in found.items() if what == "reached"] == []
    assert world.peers == []


def test_row_048_the_hosts_own_addresses_and_the_clouds_are_denied_by_default(
    python: Workshop, world: World
) -> None:
    own = world.listen("::")
    port = world.listen_outside()
    forms = (MACHINE, MACHINE6, f"::ffff:{MACHINE}", f"64:ff9b::{MACHINE}")
    denied = [f"{form}/{own}" for form in forms]
    denied += [f"{METADATA}/{port}", f"::ffff:{METADATA}/{port}"]
    run = attempt(python, *denied, f"{SERVER}/{port}")
    assert outcomes(run) == {**dict.fromkeys(denied, REFUSED), f"{SERVER}/{port}": "reached"}
    # A rule opens them, one service of the host for example.
    rules = parse_network_rules(f"allow host tcp {own}; allow 169.254.169.254")
    found = outcomes(attempt(python, f"{MACHINE}/{own}", denied[-1], fod_network_rules=rules))
    assert set(found.values()) == {"reached"}


def test_row_048_the_first_rule_that_matches_decides(python: Workshop, world: World) -> None:
    """By destination, protocol and port; IPv4 in the clothes of IPv6 is judged as IPv4."""
    port, other = world.listen_outside(), world.listen_outside()
    rules = parse_network_rules(
        f"allow {PRIVATE} tcp {port}; deny private; allow any udp; allow any tcp {port}-{port}"
    )
    targets = {
        f"{PRIVATE}/{port}": "reached",
        f"{PRIVATE}/{other}": REFUSED,
        f"::ffff:{PRIVATE}/{other}": REFUSED,
        f"{PRIVATE6}/{port}": REFUSED,
        f"{SERVER}/{port}": "reached",
        f"{SERVER}/{other}": REFUSED,
        f"{SERVER6}/{other}": REFUSED,
    }
    run = attempt(python, *targets, fod_network_rules=rules)
    assert outcomes(run) == targets
    expected = {target.removeprefix("::ffff:") for target, what in targets.items()}
    reached = {f"{PRIVATE}/{port}", f"{SERVER}/{port}"}
    assert contacts(run.result, allowed=True) == reached
    assert contacts(run.result, allowed=False) == expected - reached


def test_row_048_no_rule_means_nothing(python: Workshop, world: World) -> None:
    port = world.listen_outside()
    found = outcomes(attempt(python, f"{SERVER}/{port}", fod_network_rules=()))
    assert found == {f"{SERVER}/{port}": REFUSED}


def test_row_048_a_failed_build_says_what_it_was_kept_from(python: Workshop, world: World) -> None:
    port = world.listen_outside()
    script = f"nc -w 5 {PRIVATE} {port}"
    drv = python.make("kept", script, outputs={"out": fixed(b"")})
    run = python.build(drv, fod_network_rules=parse_network_rules("deny private; allow any"))
    assert not run.result.success
    assert f"was kept from tcp {PRIVATE}:{port}, by the setting 'fod-network-rules'" in (
        run.result.message
    )


_FLOOD = """
import socket
there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in range(1, 6000):
    there.sendto(b"x", (server, port))
print("sent all")
""".replace("server", repr(SERVER))


def test_row_048_the_list_of_contacts_is_bounded(python: Workshop, world: World) -> None:
    """A builder that sends to every port neither fails nor fills anything; the list says so."""
    run = python.build(program(python, _FLOOD))
    assert run.text == "sent all"
    assert run.result.contacts is not None
    assert not run.result.contacts.complete
    assert 1000 <= len(run.result.contacts.contacts) <= 1100


def test_row_047_multicast_and_broadcast_reach_nobody(python: Workshop, world: World) -> None:
    """Services of the host listen there: mDNS, SSDP."""
    text = """
import errno, socket, struct
for family, host in ((socket.AF_INET, "224.0.0.251"), (socket.AF_INET, "255.255.255.255"),
                     (socket.AF_INET6, "ff02::fb%eth0")):
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    where = socket.getaddrinfo(host, 5353, family, socket.SOCK_DGRAM)[0][4]
    made.connect(where)
    try:
        made.send(b"x")
        made.settimeout(1)
        made.recv(1)
    except OSError as error:
        print(host, errno.errorcode.get(error.errno, "silence"))
"""
    heard: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("", 5353))
        joined = socket.inet_aton("224.0.0.251") + socket.inet_aton(MACHINE)
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        listener.settimeout(0.1)
        run = python.build(program(python, text), fod_network_rules=ANYTHING)
        with suppress(TimeoutError):
            heard.append(listener.recv(99))
    assert set(outcomes(run).values()) <= {"EPERM", REFUSED, "silence"}
    assert heard == []


_ATTACK = """
import ctypes, errno, fcntl, os, socket, struct
def say(what, how):
    try:
        print(what, how())
    except OSError as error:
        print(what, errno.errorcode[error.errno])
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
    return "done"
def netlink(protocol, message):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as made:
        made.sendto(message, (0, 0))
        return errno.errorcode[-struct.unpack_from("=i", made.recv(4096), 16)[0]]
def sysctl(name, value):
    with open(name, "w") as file:
        file.write(value)
    return "written"
down = struct.pack("=IHHII", 32, 16, 5, 1, 0) + struct.pack("=BxHiII", 0, 0, 2, 0, 1)
flush = (struct.pack("=IHHII", 20, 16, 1, 1, 0) + struct.pack("=BBH", 0, 0, 10 << 8)
    + struct.pack("=IHHII", 36, (10 << 8) | 2, 5, 2, 0) + struct.pack("=BBH", 1, 0, 0)
    + struct.pack("=HH", 12, 1) + b"sandbox\\0"
    + struct.pack("=IHHII", 20, 17, 1, 3, 0) + struct.pack("=BBH", 0, 0, 10 << 8))
say("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
say("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
say("address", lambda: fcntl.ioctl(socket.socket(), 0x8916, b"eth0".ljust(40, b"\\0")))
say("link", lambda: netlink(0, down))
say("rules", lambda: netlink(12, flush))
say("sysctl", lambda: sysctl("/proc/sys/net/ipv4/ip_forward", "1"))
say("ping", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP))
say("others", lambda: " ".join(name for name in os.listdir("/proc") if name.isdigit()))
say("userns", lambda: call(libc.unshare, 0x10000000))
say("nested-link", lambda: netlink(0, down))
say("nested-rules", lambda: netlink(12, flush))
say("nested-raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
"""


def test_row_050_a_builder_can_not_change_its_network(python: Workshop, world: World) -> None:
    """Nor see who runs it; a user namespace of its own, where it gets one, changes nothing."""
    port = world.listen_outside()
    run = python.build(
        program(python, f"{_ATTACK}\nimport os\n{TRY}", targets=f"{METADATA}/{port}")
    )
    found = outcomes(run)
    assert set(found.pop("others").split()) <= {"1", "2", "3"}
    assert found.pop(f"{METADATA}/{port}") == REFUSED
    found.pop("userns")
    refusals = {"EPERM", "EACCES", "EAFNOSUPPORT", "EPROTONOSUPPORT", "EROFS", "ENOENT"}
    assert set(found.values()) <= refusals, found


def _status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def test_row_050_the_helper_of_a_network_can_do_nothing_else(
    workshop: Workshop, world: World, meeting: Path
) -> None:
    with running_build(workshop, meeting) as running:
        pid = running.helper
        status = _status(pid)
        (uid,) = set(status["Uid"])
        builder = _waiting_builder()
        assert int(uid) not in (0, 65534)
        assert uid not in _status(builder)["Uid"]
        assert set(status["Gid"]) == {uid}
        assert status["Groups"] == []
        assert status["NoNewPrivs"] == ["1"]
        assert status["Seccomp"] == ["2"]
        # What capabilities it has count in its own user namespace only.
        assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
        for name in ("pid", "mnt", "ipc", "uts", "cgroup"):
            others = {os.readlink(f"/proc/{other}/ns/{name}") for other in ("self", builder)}
            assert os.readlink(f"/proc/{pid}/ns/{name}") not in others
        assert os.readlink(f"/proc/{builder}/ns/net") == running.ready.read_text().strip()
        assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/thread-self/ns/net")
        assert os.listdir(f"/proc/{pid}/root/") == []
    assert running.end().success, running.end().message
    assert not os.path.exists(f"/proc/{pid}")


def _waiting_builder() -> int:
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            line = Path("/proc", entry, "cmdline").read_bytes()
            if b"\0-e\0-c\0readlink" in line:
                return int(entry)
    raise AssertionError("no builder waits")


def test_row_050_a_build_ends_with_its_helper(
    workshop: Workshop, world: World, meeting: Path
) -> None:
    """It doesn't go on without the network that it was promised."""
    with running_build(workshop, meeting) as running:
        os.kill(running.helper, 9)
        result = running.end()
    assert not result.success
    assert result.cause is FailureCause.SETUP
    assert "its network was lost: its helper ended unexpectedly" in result.message
    assert workshop.leftovers() == []


def test_row_050_no_helper_outlives_a_killed_executor(workshop: Workshop, world: World) -> None:
    drv = workshop.make("endless", FOREVER, outputs={"out": fixed(b"")})
    running = workshop.start_cli("build", drv.text)
    try:
        wait_until(lambda: bool(helpers()), "the helper")
        found = helpers()
    finally:
        running.kill()
        running.communicate()
    wait_until(lambda: not any(map(is_pasta, found)), "the end of the helper")


def test_row_043_044_abstract_sockets_end_at_the_network_of_a_build(
    workshop: Workshop, world: World, meeting: Path
) -> None:
    """In both directions, by name; the namespace is another one."""
    name = f"executor-test-{os.getpid()}"
    workshop.change(sandbox_paths=(*workshop.settings.sandbox_paths, *HOST_PROGRAMS))
    text = f"""
import os, socket, time
here = socket.socket(socket.AF_UNIX)
here.bind("\\0{name}-inside")
here.listen()
open("/meet/ready", "w").write("ready")
while not os.path.exists("/meet/go-on"):
    time.sleep(0.05)
try:
    socket.socket(socket.AF_UNIX).connect("\\0{name}-outside")
    print("out connected")
except OSError as error:
    print("out", error.strerror)
"""
    results: list[Run] = []
    with socket.socket(socket.AF_UNIX) as outside, socket.socket(socket.AF_UNIX) as inward:
        outside.bind(f"\0{name}-outside")
        outside.listen()
        thread = threading.Thread(
            target=lambda: results.append(workshop.build(program(workshop, text)))
        )
        thread.start()
        wait_until((meeting / "ready").exists, "the builder")
        with pytest.raises(ConnectionRefusedError):
            inward.connect(f"\0{name}-inside")
        (meeting / "go-on").touch()
        thread.join(60)
    assert outcomes(results[0]) == {"out": "Connection refused"}


_NAMES = """
import socket
print("name", socket.gethostbyname("some.example"))
try:
    open("/etc/resolv.conf", "a")
    print("file opened")
except OSError as error:
    print("file", error.strerror)
print("servers", open("/etc/resolv.conf").read().split())
"""


def test_row_049_names_are_found_where_the_resolver_is_on_loopback(
    python: Workshop, world: World
) -> None:
    """The build's resolv.conf is its own, and rules keep it working."""
    world.answer_datagrams("127.0.0.53", 53)
    host_file = python.directory / "stub-resolv.conf"
    host_file.write_text("# made by a test\nnameserver 127.0.0.53\noptions edns0\n")
    drv = program(python, _NAMES)
    command = python.command("build", drv.text, "-L", "--json", "--option", "sandbox-paths")
    shown = " ".join(f"{path.target}={path.source}:ro" for path in python.settings.sandbox_paths)
    rules = ("--option", "fod-network-rules", "deny any")
    covered = f'mount --bind {host_file} /etc/resolv.conf && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", covered, "sh", *command, shown, *rules],
        env=python.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert f"name {SERVER}" in done.stderr
    assert "file Permission denied" in done.stderr
    assert "servers ['options', 'edns0', 'nameserver', '192.0.0.3']" in done.stderr
    (record,) = json.loads(done.stdout)
    asked = {"protocol": "udp", "address": "192.0.0.3", "port": 53}
    assert record["network"] == {"contacted": [asked], "denied": [], "complete": True}
    assert "127.0.0.53" in host_file.read_text()


def test_row_048_none_is_loopback_alone_and_host_is_the_hosts(
    python: Workshop, world: World
) -> None:
    outside, own = world.listen_outside(), world.listen("127.0.0.1")
    targets = (f"{SERVER}/{outside}", f"127.0.0.1/{own}")
    none = attempt(python, *targets, fod_network="none")
    assert list(outcomes(none).values()) == ["ENETUNREACH", REFUSED]
    host = attempt(python, *targets, fod_network="host")
    assert list(outcomes(host).values()) == ["reached", "reached"]
    assert none.result.contacts is None
    assert host.result.contacts is None


def test_row_048_a_builtin_fetches_through_it(workshop: Workshop, world: World) -> None:
    body = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nmade\n"
    with world.in_outside():
        port = world.listen("0.0.0.0", banner=body)
    drv = workshop.make(
        "fetched",
        outputs={"out": fixed(b"made\n")},
        builder=b"builtin:fetchurl",
        args=(),
        platform="builtin",
        env={"url": f"http://{SERVER}:{port}/x"},
    )
    result = workshop.build(drv).result
    assert result.success, (result.message, result.log_tail)
    assert contacts(result, allowed=True) == {f"{SERVER}/{port}"}


@pytest.mark.parametrize(("program_name", "package"), [("pasta", "passt"), ("nft", "nftables")])
def test_row_050_what_is_missing_fails_the_build_and_is_named(
    workshop: Workshop,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    program_name: str,
    package: str,
) -> None:
    """Nothing is tried with less."""
    (tmp_path / "bin").mkdir()
    other = "nft" if program_name == "pasta" else "pasta"
    (tmp_path / "bin" / other).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr("executor.build.network._SYSTEM_PROGRAMS", "")
    drv = workshop.make("lacking", outputs={"out": fixed(b"made\n")})
    result = workshop.build(drv).result
    assert not result.success
    assert f"install the Debian package '{package}'" in result.message
    assert "fod-network" in result.message
    other_run = workshop.build(workshop.make("ordinary"))
    assert other_run.result.success
