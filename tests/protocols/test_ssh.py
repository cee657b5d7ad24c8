"""Stock Nix reaches the executor by ssh: as a store, and as a remote builder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.protocols.conftest import RunningDaemon, open_directory
from tests.protocols.machines import Machine, Network
from tests.protocols.test_building import expression

pytestmark = [pytest.mark.root, pytest.mark.nix]
PROTOCOLS = ("ssh", "ssh-ng")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with open_directory() as directory:
        yield Network(directory)


@pytest.fixture(scope="module")
def machine(network: Network) -> Machine:
    return network.add("box")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_closures_are_copied_there_built_there_and_copied_back(
    network: Network, machine: Machine, protocol: str
) -> None:
    dependency = expression(f"{protocol}-dep", "echo dep > $out")
    wanted = expression(f"{protocol}-a", "echo $dep > $out", f"dep = {dependency};")
    drv = network.instantiate(wanted)
    url = f"{protocol}://box"
    network.nix("nix", "copy", "--derivation", "--to", url, drv)
    assert machine.real(drv).exists()
    words = ("--builders", f"{url} x86_64-linux - 1")
    done = network.nix("nix-store", "--realise", drv, *words)
    out = done.stdout.strip()
    assert f"on '{url}'" in done.stderr
    content = machine.real(out).read_text()
    assert content.endswith(f"-{protocol}-dep\n")
    assert (network.client_store / out[1:]).read_text() == content
    shown = network.nix("nix", "path-info", "--store", url, "-r", out).stdout.split()
    assert set(shown) == {content.strip(), out}
    other = f"{network.directory}/other-{protocol}"
    network.nix("nix", "copy", "--no-check-sigs", "--from", url, "--to", other, out)
    assert (network.directory / f"other-{protocol}" / out[1:]).read_text() == content


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_log_and_the_failure_of_a_remote_build_are_told(
    network: Network, machine: Machine, protocol: str
) -> None:
    bad = expression(f"{protocol}-bad", "echo oh no; exit 3")
    builders = f"{protocol}://box x86_64-linux - 1"
    done = network.nix("nix-build", "--builders", builders, "-E", bad, check=False)
    assert done.returncode
    assert "builder failed with exit code 3" in done.stderr
    assert "oh no" in done.stderr


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_content_addressed_outputs_come_back_with_their_realisations(
    network: Network, machine: Machine, protocol: str
) -> None:
    more = '__contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";'
    wanted = expression(f"{protocol}-ca", "echo ca > $out", more)
    words = ("--builders", f"{protocol}://box x86_64-linux - 1 1 ca-derivations")
    out = network.nix("nix-build", "--no-out-link", *words, "-E", wanted).stdout.strip()
    assert (network.client_store / out[1:]).read_text() == "ca\n"


def test_limits_of_the_client_hold_there(network: Network, machine: Machine) -> None:
    """``ssh://`` carries them."""
    slow = expression("slow", "echo begun; read x < /dev/zero & wait")
    words = ("nix-build", "--builders", "ssh://box x86_64-linux - 1", "--timeout", "1", "-E", slow)
    done = network.nix(*words, check=False)
    assert "timed out after 1 seconds" in done.stderr


def test_a_remote_program_may_be_the_executor_with_options(
    network: Network, machine: Machine
) -> None:
    """What ``ssh-ng://`` doesn't carry can be said in the program's words."""
    slow = expression("slow-ng", "echo begun; read x < /dev/zero & wait")
    program = machine.program("executor", "").rename(machine.directory / "bin" / "executor")
    text = program.read_text().replace(" --store", ' "$@" --store').replace(' "$@"\n', "\n")
    program.write_text(text)
    remote = "executor%20daemon%20--timeout%201"
    builders = f"ssh-ng://box?remote-program={remote} x86_64-linux - 1"
    done = network.nix("nix-build", "--builders", builders, "-E", slow, check=False)
    assert "timed out after 1 seconds" in done.stderr
    drv = network.instantiate(expression("words", "echo w > $out"))
    url = "ssh://box?remote-program=executor%20serve"
    network.nix("nix", "copy", "--derivation", "--to", url, drv)
    assert machine.real(drv).exists()


def test_limits_for_clients_that_send_no_options_are_a_setting(
    network: Network, machine: Machine
) -> None:
    slow = expression("slow-silent", "echo begun; read x < /dev/zero & wait")
    machine.configure("silent-client-options = timeout=1 cores=3\n")
    try:
        builders = ("--builders", "ssh-ng://box x86_64-linux - 1")
        done = network.nix("nix-build", *builders, "-E", slow, check=False)
        assert "timed out after 1 seconds" in done.stderr
        cores = expression("cores", "echo $NIX_BUILD_CORES > $out")
        out = network.nix("nix-build", "--no-out-link", *builders, "-E", cores).stdout.strip()
        assert machine.real(out).read_text() == "3\n"
    finally:
        machine.configure("")


@pytest.fixture(scope="module")
def behind(network: Network, daemon: RunningDaemon) -> Machine:
    """A machine whose ssh user reaches the store through a daemon only."""
    machine = network.add("behind")
    for name, command in (("nix-store", "serve"), ("nix-daemon", "daemon")):
        program = machine.program(name, command)
        there = f"--store unix://{daemon.socket_path}"
        program.write_text(program.read_text().replace(f"--store {machine.store}", there))
    return machine


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_user_who_is_not_root_is_served_through_the_daemon(
    network: Network, behind: Machine, daemon: RunningDaemon, protocol: str
) -> None:
    dependency = expression(f"{protocol}-far-dep", "echo dep > $out")
    more = f"dep = {dependency};"
    wanted = expression(f"{protocol}-far", "echo said far; echo $dep > $out", more)
    url = f"{protocol}://behind"
    drv = network.instantiate(wanted)
    network.nix("nix", "copy", "--derivation", "--to", url, drv)
    assert daemon.real(drv).exists()
    done = network.nix("nix-store", "-r", drv, "--builders", f"{url} x86_64-linux - 1")
    out = done.stdout.strip()
    assert "said far" in done.stderr
    assert daemon.real(out).read_text().endswith(f"-{protocol}-far-dep\n")
    shown = network.nix("nix", "path-info", "--store", url, "-r", out).stdout.split()
    assert len(shown) == 2
    other = f"{network.directory}/other-far-{protocol}"
    network.nix("nix", "copy", "--no-check-sigs", "--from", url, "--to", other, out)
    bad = expression(f"{protocol}-far-bad", "echo oh no; exit 3")
    builders = ("--builders", f"{url} x86_64-linux - 1")
    done = network.nix("nix-build", *builders, "-E", bad, check=False)
    assert "builder failed with exit code 3" in done.stderr
    ca = '__contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256";'
    floating = expression(f"{protocol}-far-ca", "echo ca > $out", ca)
    words = ("--builders", f"{url} x86_64-linux - 1 1 ca-derivations")
    out = network.nix("nix-build", "--no-out-link", *words, "-E", floating).stdout.strip()
    assert daemon.real(out).read_text() == "ca\n"
