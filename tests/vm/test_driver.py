"""The driver of whole machines, as far as it needs none: catalogue, kernels, network, shell."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from driver.catalogue import HOME, load
from driver.console import Console
from driver.cpio import archive, directory, program
from driver.errors import DriverError, MachineDiedError
from driver.hub import Hub
from driver.kernels import load_order
from driver.qemu import Hardware, command_line


def test_every_script_has_a_table_and_compiles() -> None:
    tests = load()
    scripts = {path.stem for path in (HOME / "scripts").glob("*.py")}
    assert set(tests) == scripts
    for test in tests.values():
        compile(test.script.read_text(), str(test.script), "exec")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "[boot]\nabout = 'x'\nmachines.a = {}\nspeed = 3\n",
            "'boot' has what nobody knows: speed",
        ),
        ("[nowhere]\nabout = 'x'\nmachines.a = {}\n", "there is no script"),
        ("[boot]\nabout = 'x'\nmachines.a = { kernel = 'odd' }\n", "a kernel is one of"),
        ("[boot\n", "tests.toml"),
    ],
)
def test_a_wrong_table_is_an_error_that_names_it(tmp_path: Path, text: str, complaint: str) -> None:
    shutil.copytree(HOME / "scripts", tmp_path / "scripts")
    (tmp_path / "tests.toml").write_text(text)
    with pytest.raises(DriverError, match=complaint):
        load(tmp_path / "tests.toml")


def test_the_initial_file_system_is_one_that_cpio_reads(tmp_path: Path) -> None:
    data = archive([directory("dev"), program("init", b"#!/bin/sh\n"), program("odd", b"12345")])
    busybox = ["/bin/busybox", "cpio", "-i"]
    subprocess.run(busybox, input=data, cwd=tmp_path, check=True, timeout=30, capture_output=True)
    assert (tmp_path / "dev").is_dir()
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "odd").read_bytes() == b"12345"


def test_modules_are_loaded_after_those_that_they_need(tmp_path: Path) -> None:
    dependencies = tmp_path / "modules.dep"
    dependencies.write_text(
        "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz\n"
        "kernel/fs/jbd2/jbd2.ko.xz:\n"
        "kernel/lib/crc16.ko.xz:\n"
        "kernel/drivers/virtio-blk.ko: kernel/lib/crc16.ko.xz\n"
    )
    assert load_order(dependencies, ("virtio_blk", "ext4", "built_in")) == [
        "kernel/lib/crc16.ko.xz",
        "kernel/drivers/virtio-blk.ko",
        "kernel/fs/jbd2/jbd2.ko.xz",
        "kernel/fs/ext4/ext4.ko.xz",
    ]


def test_the_hub_repeats_a_frame_to_all_others() -> None:
    hub = Hub()
    try:
        one, two, three = (hub.port(name) for name in ("one", "two", "three"))
        for port in (one, two, three):
            port.settimeout(10)
        one.send(b"frame")
        assert two.recv(100) == b"frame"
        assert three.recv(100) == b"frame"
        two.send(b"answer")
        assert one.recv(100) == b"answer"
        two.close()
        hub.unplug("two")
        one.send(b"again")
        assert three.recv(100) == b"answer"
        assert three.recv(100) == b"again"
    finally:
        hub.close()
        for port in (one, two, three):
            port.close()


def test_a_command_is_answered_by_its_output_and_its_code() -> None:
    ours, theirs = socket.socketpair()
    shell = subprocess.Popen(
        ["/bin/bash", "--norc", "--noprofile"],
        stdin=theirs.fileno(),
        stdout=theirs.fileno(),
        stderr=subprocess.DEVNULL,
    )
    theirs.close()
    try:
        console = Console(ours, "guest")
        assert console.execute("echo one; echo two; exit 3", 30) == (3, "one\ntwo\n")
        assert console.execute("printf '\\0\\377' | wc -c", 30) == (0, "2\n")
        assert console.execute("sleep 30", 0.2)[0] == 124
        assert console.execute("cat", 30) == (0, "")
    finally:
        ours.close()
        shell.wait(30)


def test_a_guest_that_is_silent_or_gone_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    console = Console(ours, "guest")
    begun = time.monotonic()
    with pytest.raises(MachineDiedError, match="did not answer in time"):
        console.wait_for_greeting(0.2)
    assert time.monotonic() - begun < 10

    def answer_and_go() -> None:
        theirs.sendall(base64.b64encode(b"half"))
        theirs.close()

    thread = threading.Thread(target=answer_and_go)
    thread.start()
    with pytest.raises(MachineDiedError, match="ended"):
        console.wait_for_greeting(30)
    thread.join()
    ours.close()


def test_a_guest_reaches_nothing_of_the_host() -> None:
    hardware = Hardware(
        name="guest",
        memory=512,
        processors=1,
        kernel=Path("vmlinuz"),
        initrd=Path("initrd"),
        command_line="quiet",
        disks=(Path("root.qcow2"), Path("more.qcow2")),
        mac="52:54:00:12:01:01",
        console_log=Path("log"),
    )
    command = command_line("qemu", hardware, "tcg", 3, 4, 5)
    networks = [word for before, word in pairwise(command) if before == "-netdev"]
    assert networks == ["dgram,id=lan,local.type=fd,local.str=5"]
    assert "-nodefaults" in command
    assert sum("virtio-blk-pci" in word for word in command) == 2
