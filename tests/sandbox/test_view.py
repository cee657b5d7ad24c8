"""What a program sees of the machine: as little as possible, and the same everywhere."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox import (
    Bind,
    Exec,
    Exited,
    InputPath,
    Network,
    SetupFailedError,
    Signaled,
    Spawner,
    SpawnerLostError,
)
from tests.sandbox.conftest import UID, Bench, with_spawner

pytestmark = pytest.mark.root


def lines(bench: Bench, script: str, **changes: object) -> list[str]:
    finished = bench.run(script, **changes)
    assert finished.exit == Exited(code=0, usage=finished.exit.usage), finished.output
    return finished.output.splitlines()


def test_the_root_holds_the_minimum(bench: Bench) -> None:
    assert lines(bench, "busybox ls /") == ["bin", "build", "dev", "etc", "nix", "proc", "tmp"]
    names = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert lines(bench, "busybox ls /dev") == names.split()
    assert lines(bench, "busybox find /tmp /dev/shm /build") == ["/tmp", "/dev/shm", "/build"]


def test_ids_names_and_capabilities(bench: Bench) -> None:
    assert lines(bench, "busybox id -u; busybox id -g; busybox id -G") == ["1000", "100", "100"]
    assert lines(bench, "busybox hostname; cat /proc/sys/kernel/domainname", binds=_tools()) == [
        "localhost",
        "(none)",
    ]
    # Not through the shell, which changes what it does with some signals.
    direct = {"entry": Exec(b"/bin/busybox"), "argv": (b"cat", b"/proc/self/status")}
    status = dict(line.split(":", 1) for line in lines(bench, "", **direct))
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigIgn", "SigBlk"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    assert status["Umask"].strip() == "0022"


def _tools() -> tuple[Bind, ...]:
    return tuple(
        Bind(source=b"/bin/busybox", target=b"/bin/" + name) for name in (b"sh", b"busybox", b"cat")
    )


def test_the_builder_is_the_first_process_of_its_namespace(bench: Bench) -> None:
    assert lines(bench, "echo $$ $PPID; busybox ls /proc | busybox grep -c '^[0-9]'")[0] == "1 0"


def test_only_three_descriptors_are_open(bench: Bench) -> None:
    # A decoy that is inheritable on purpose.
    decoy = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(decoy, True)  # noqa: FBT003
    try:
        script = "busybox ls /proc/$$/fd; busybox readlink /proc/$$/fd/0; true"
        assert lines(bench, script) == ["0", "1", "2", "/dev/null"]
    finally:
        os.close(decoy)


def test_the_environment_is_exactly_what_was_given(bench: Bench) -> None:
    os.environ["CANARY"] = "secret"
    try:
        spec_environment = ((b"A", b"1"), (b"B", b"two words\n"))
        script = "/bin/busybox tr '\\0' '|' < /proc/$$/environ; true"
        output = lines(bench, script, environment=spec_environment)
    finally:
        del os.environ["CANARY"]
    assert "\n".join(output) == "A=1|B=two words\n|"


def test_inputs_are_read_only_and_nothing_else_is_there(bench: Bench) -> None:
    tree = bench.directory / "tree"
    tree.mkdir()
    (tree / "file").write_text("content")
    link = bench.directory / "link"
    link.symlink_to("/etc/shadow")
    single = bench.directory / "single"
    single.write_text("single")
    inputs = tuple(
        InputPath(source=os.fsencode(path), name=path.name.encode())
        for path in (tree, link, single)
    )
    script = (
        "busybox ls /nix/store; busybox cat /nix/store/tree/file /nix/store/single; echo;"
        "busybox readlink /nix/store/link; busybox touch /nix/store/tree/new || echo refused;"
        "echo x > /nix/store/single || echo refused; busybox rm -r /nix/store/tree || echo refused"
    )
    output = lines(bench, script + " 2>/dev/null", inputs=inputs)
    assert output[:5] == ["link", "single", "tree", "contentsingle", "/etc/shadow"]
    assert sum("refused" in line for line in output) == 3
    assert (tree / "file").read_text() == "content"


def test_the_network_is_loopback_only(bench: Bench) -> None:
    output = lines(bench, "busybox ifconfig -a | busybox grep -c Link; busybox ifconfig lo")
    assert output[0] == "1"
    assert any("127.0.0.1" in line for line in output)


def test_the_host_network_is_there_on_request(bench: Bench) -> None:
    host = os.readlink("/proc/self/ns/net")
    assert lines(bench, "busybox readlink /proc/self/ns/net", network=Network.HOST) == [host]
    assert lines(bench, "busybox readlink /proc/self/ns/net") != [host]


def test_the_host_side_runs_under_the_build_user(bench: Bench) -> None:
    async def go(spawner: Spawner) -> str:
        process, pipe = await bench.start(spawner, bench.spec("busybox sleep 30"))
        status = Path(f"/proc/{process.pid}/status").read_text()
        uid_map = Path(f"/proc/{process.pid}/uid_map").read_text().split()
        process.kill()
        await bench.finish(process, pipe)
        assert uid_map == ["1000", str(UID), "1"]
        return status

    status = with_spawner(go)
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}" in status
    assert f"Gid:\t{UID}\t{UID}\t{UID}\t{UID}" in status


def test_the_hosts_mounts_stay_as_they_are(bench: Bench) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    script = (
        "busybox unshare -Urm busybox sh -c 'busybox mount -t tmpfs x /tmp && echo done';"
        "busybox grep -c shared: /proc/self/mountinfo; true"
    )
    assert lines(bench, script) == ["done", "0"]
    assert Path("/proc/self/mountinfo").read_text() == before


def test_signals_reach_nobody_outside(bench: Bench) -> None:
    victim = subprocess.Popen(["sleep", "60"], user=UID)
    try:
        bench.run(f"busybox kill -9 {victim.pid}; busybox kill -9 -1")
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_a_left_behind_process_is_dead_at_the_end(bench: Bench) -> None:
    script = "(trap '' TERM HUP INT; busybox setsid busybox sleep 60 >/dev/null 2>&1 &) ; exit 3"
    finished = bench.run(script)
    assert finished.exit == Exited(code=3, usage=finished.exit.usage)
    assert not _processes_of(UID)


def _processes_of(uid: int) -> list[str]:
    """Living processes; what only waits to be reaped by init can't do anything any more."""
    command = ["ps", "-U", str(uid), "-o", "stat=,pid="]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line for line in found.stdout.splitlines() if not line.startswith("Z")]


def test_exit_codes_signals_and_exec_failures_are_told_apart(bench: Bench) -> None:
    assert isinstance(bench.run("exit 7").exit, Exited)
    killed = bench.run("busybox kill -9 $$; exit 0").exit
    # The first process of a namespace can't kill itself this way: it goes on.
    assert isinstance(killed, Exited)
    missing = bench.run("", entry=Exec(b"/no/such"))
    assert missing.process.exec_error is not None
    assert missing.process.exec_error.errno == 2
    assert missing.exit == Exited(code=1, usage=missing.exit.usage)
    assert "executing '\x1b[35;1m/no/such\x1b[0m': " in missing.output
    assert "\x1b[35;1mNo such file or directory" in missing.output
    directory = bench.run("", entry=Exec(b"/etc"))
    assert directory.process.exec_error is not None


def test_a_killed_program_is_signaled(bench: Bench) -> None:
    async def go(spawner: Spawner) -> None:
        process, pipe = await bench.start(spawner, bench.spec("busybox sleep 60"))
        process.kill()
        finished = await bench.finish(process, pipe)
        assert isinstance(finished.exit, Signaled)
        assert finished.exit.signal == 9

    with_spawner(go)


def test_builders_die_with_the_spawner(bench: Bench) -> None:
    async def go(spawner: Spawner) -> None:
        process, pipe = await bench.start(spawner, bench.spec("busybox sleep 60"))
        spawner._process.kill()
        with pytest.raises(SpawnerLostError):
            await process.wait()
        os.close(pipe)
        for _ in range(100):
            if not _processes_of(UID):
                return
            await asyncio.sleep(0.01)
        pytest.fail("a builder outlived the spawner by a second")

    with_spawner(go)


def test_a_builder_that_refuses_to_die_with_the_spawner_is_killed(
    bench: Bench, tmp_path: Path
) -> None:
    source, program = tmp_path / "stay.c", tmp_path / "stay"
    source.write_text(
        "#include <stdio.h>\n#include <sys/prctl.h>\n#include <unistd.h>\n"
        'int main(void) { prctl(PR_SET_PDEATHSIG, 0); puts("here"); fflush(stdout); sleep(60); }\n'
    )
    subprocess.run(["gcc", "-static", "-o", program, source], check=True, timeout=60)
    spec = replace(
        bench.spec(""),
        entry=Exec(b"/stay"),
        binds=(Bind(source=os.fsencode(program), target=b"/stay", read_only=True),),
    )

    async def go(spawner: Spawner) -> None:
        process, pipe = await bench.start(spawner, spec)
        assert await asyncio.to_thread(os.read, pipe, 100) == b"here\n"
        spawner._process.kill()
        with pytest.raises(SpawnerLostError):
            await process.wait()
        assert not _processes_of(UID)
        os.close(pipe)

    with_spawner(go)


def test_builders_die_with_the_executor(bench: Bench) -> None:
    code = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from tests.sandbox.conftest import Bench, with_spawner\n"
        "bench = Bench(Path(sys.argv[1]))\n"
        "async def go(spawner):\n"
        "    await bench.start(spawner, bench.spec('busybox sleep 60'))\n"
        "    os.kill(os.getpid(), 9)\n"
        "with_spawner(go)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(bench.directory)], check=False)
    for _ in range(100):
        if not _processes_of(UID):
            return
        subprocess.run(["sleep", "0.01"], check=True)
    pytest.fail("a builder outlived the executor by a second")


@pytest.mark.parametrize(
    ("bind", "step"),
    [
        (Bind(source=b"/no/such/path", target=b"/x"), "bind a path"),
        (Bind(source=b"/etc", target=b"/usr/no/such/directory"), "bind a path"),
    ],
)
def test_what_cant_be_bound_fails_the_setup_and_names_it(
    bench: Bench, bind: Bind, step: str
) -> None:
    usr = Bind(source=b"/usr", target=b"/usr")
    with pytest.raises(SetupFailedError) as caught:
        bench.run("true", binds=(usr, bind))
    assert caught.value.step == step
    assert os.fsdecode(bind.source) in str(caught.value)
    assert not os.path.exists("/usr/no")


def test_a_missing_optional_path_is_left_out(bench: Bench) -> None:
    missing = Bind(source=b"/no/such/path", target=b"/x", optional=True)
    assert "x" not in lines(bench, "busybox ls /", binds=(*_tools(), missing))


def test_many_starts_leak_nothing(bench: Bench) -> None:
    async def go(spawner: Spawner) -> None:
        spawner_fds = f"/proc/{spawner._process.pid}/fd"
        for _ in range(3):  # what a spawner keeps for the next ones is there from the third on
            await bench.finish(*await bench.start(spawner, bench.spec("true")))
        before = len(os.listdir(spawner_fds)), len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            await bench.finish(*await bench.start(spawner, bench.spec("true")))
        assert (len(os.listdir(spawner_fds)), len(os.listdir("/proc/self/fd"))) == before

    with_spawner(go)


def test_two_at_once_dont_see_each_other(bench: Bench) -> None:
    async def go(spawner: Spawner) -> None:
        script = (
            "echo $$ > /tmp/mine; busybox sleep 0.2; busybox ls /tmp; busybox ps | busybox wc -l"
        )
        started = [await bench.start(spawner, bench.spec(script)) for _ in range(2)]
        for process, pipe in started:
            finished = await bench.finish(process, pipe)
            assert finished.output.splitlines()[0] == "mine"

    with_spawner(go)
