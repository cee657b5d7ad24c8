# What a local user and a process under the build's own id can't do to builds, their directories, their
# outputs before they are registered, and what failed builds leave (rows 35, 98, 99, 101, 102, 104).
import re
import shlex

# A directory that waits for the next build, and those in it that only exist for one: name, kind,
# owner and mode. The outermost lets nobody in.
SPARE = re.compile(
    r"nix-\d+-[0-9a-f]{16}( d 0 700|/chroot d 0 700|/chroot/(root|store|tmp|final) d 0 [0-7]+)"
)

OPEN = """
chmod 777 . .. / /tmp 2>/dev/null || true
busybox mkdir $out; chmod 777 $out
for place in /build /tmp $out; do
    busybox cp /bin/busybox $place/program; chmod 4777 $place/program 2>/dev/null
    chmod 777 $place/program; echo mine > $place/file; chmod 666 $place/file
done
echo secret-of-the-build > /build/key
busybox mkfifo /build/wait; echo ready
"""


def write(path, text):
    machine.succeed(f"printf %s {shlex.quote(text)} > {path}")


def nix(name, script):
    write(f"/tmp/{name}.sh", script)
    write(
        f"/tmp/{name}.nix",
        f"""derivation {{
          name = "{name}"; system = builtins.currentSystem; PATH = "/bin";
          builder = "/bin/sh"; args = [ "-c" (builtins.readFile ./{name}.sh) ];
        }}""",
    )
    return machine.succeed(f"chmod 644 /tmp/{name}.*; nix-instantiate /tmp/{name}.nix").strip()


def begin(drv, name):
    """Build as alice, through the daemon; the build's process and its id outside."""
    command = (
        f"NIX_REMOTE=daemon nix-store -r {drv} > /tmp/{name}.out 2>&1; echo $? > /tmp/{name}.code"
    )
    machine.execute(f"su -l alice -c {shlex.quote(command)}", check_output=False)
    machine.wait_until_succeeds(f"grep -x ready /tmp/{name}.out", timeout=120)
    process = machine.succeed("pgrep -n -f '[s]leep 1234'").strip()
    return process, machine.succeed(f"stat -c %u /proc/{process}").strip()


def as_user(user, command):
    return f"setpriv --reuid {user} --regid 65534 --clear-groups -- sh -c {shlex.quote(command)}"


start_all()
machine.wait_for_unit("multi-user.target")
bob = machine.succeed("id -u bob").strip()
wait = (
    "busybox sleep 1234 & child=$!; until [ -e /tmp/go ]; do busybox sleep 0.2; done; kill $child\n"
)

with subtest("nobody reaches what a builder opens to all"):
    drv = nix("open", OPEN + wait + "busybox rm -f $out/program; chmod 755 $out")
    process, builder = begin(drv, "open")
    assert int(builder) > 0 and builder != bob, builder
    tops = machine.succeed(
        "ls -d /nix/var/nix/builds/* /nix/store/*.chroot 2>/dev/null || true"
    ).split()
    assert tops
    places = machine.succeed(f"find {' '.join(tops)} -type d").split()
    assert any(place.endswith("/build") for place in places), places
    for user in (bob, builder):
        for place in places:
            machine.fail(as_user(user, f"ls {place}"))
            machine.fail(as_user(user, f"touch {place}/new"))
            machine.fail(as_user(user, f"cat {place}/file"))
            machine.fail(as_user(user, f"{place}/program true"))

with subtest("nor through its process"):
    for user in (bob, builder):
        for name in ("root", "cwd", "fd/1", "environ", "mem", "map_files"):
            machine.fail(
                as_user(user, f"head -c 1 /proc/{process}/{name}; ls /proc/{process}/{name}/")
            )
        machine.fail(as_user(user, f"nsenter -t {process} -m -U true"))
    machine.fail(as_user(bob, f"kill -0 {process}"))

with subtest("an id that is in use is given to nobody else"):
    other = nix(
        "other",
        "echo ready; busybox sleep 1234 & child=$!; busybox sleep 5; kill $child; echo > $out",
    )
    second, uid = begin(other, "other")
    assert uid != builder, uid
    machine.wait_until_succeeds("test -s /tmp/other.code", timeout=120)

with subtest("what was opened is canonical, and root's, at the end"):
    machine.succeed(f"touch /proc/{process}/root/tmp/go")
    machine.wait_until_succeeds("test -s /tmp/open.code", timeout=120)
    out = machine.succeed("tail -1 /tmp/open.out").strip()
    assert machine.succeed(f"stat -c '%u %a' {out} {out}/file") == "0 555\n0 444\n", out

with subtest("failed, killed and slow builds leave nothing"):
    for name, end in (
        ("fails", "exit 1"),
        ("crashes", "kill -9 $$"),
        ("slow", "busybox sleep 999"),
    ):
        drv = nix(name, OPEN + end)
        machine.fail(f"NIX_REMOTE=daemon nix-store -r {drv} --timeout 5 2>&1")
        machine.fail(f"test -e $(nix-store -q --outputs {drv})")
    leased = f"-uid {builder}"
    for ids in (leased, "-uid +872415231"):
        machine.succeed(f'test -z "$(find / -xdev {ids})"')
    # But for what the daemon keeps for its next builds: empty directories of root's, all locked up.
    left = machine.succeed("find /nix/var/nix/builds -mindepth 1 -printf '%P %y %U %m\\n'")
    wrong = [line for line in left.splitlines() if not SPARE.fullmatch(line)]
    assert not wrong, wrong

with subtest("keys and queues of a build are gone with it"):
    drv = nix("ipc", "busybox ipcs; echo > /dev/shm/left; echo > $out")
    machine.succeed(f"NIX_REMOTE=daemon nix-store -r {drv}")
    machine.fail("ls /dev/shm/left")
    assert (
        machine.succeed("cat /proc/sysvipc/shm /proc/sysvipc/sem /proc/sysvipc/msg | wc -l")
        == "3\n"
    )
    machine.fail("grep -E '^ *[0-9a-f]+ .* (8724[0-9]{5}|87[3-9][0-9]{6}|88[0-9]{7}) ' /proc/keys")
machine.shutdown()
