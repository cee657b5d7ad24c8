# Store, build directory, log directory and database, each on a small file system, filled in turn: the
# result names the file system, nothing is lost, and with space again the same build succeeds.
import shlex

PLACES = {
    "/nix/store": "/dev/vdb",
    "/build-dir": "/dev/vdc",
    "/nix/var/log/nix": "/dev/vdd",
    "/nix/var/nix/db": "/dev/vde",
}


def write(path, text):
    machine.succeed(f"printf %s {shlex.quote(text)} > {path}")


def instantiate(name, script):
    write(f"/tmp/{name}.sh", script)
    write(
        f"/tmp/{name}.nix",
        f"""derivation {{
          name = "{name}"; system = builtins.currentSystem; PATH = "/bin";
          builder = "/bin/sh"; args = [ "-c" (builtins.readFile ./{name}.sh) ];
        }}""",
    )
    return machine.succeed(f"nix-instantiate /tmp/{name}.nix").strip()


def build(drv):
    return machine.execute(f"executor build --option build-dir /build-dir {drv} 2>&1", timeout=300)


def fill(place, left):
    """Take all space but ``left`` KiB."""
    machine.succeed(
        f"free=$(df --output=avail -k {place} | tail -1); "
        f"fallocate -l $((free - {left}))K {place}/.ballast || "
        f"dd if=/dev/zero of={place}/.ballast bs=1K count=$((free - {left})) status=none; sync"
    )


def empty(place):
    machine.succeed(f"rm -f {place}/.ballast; sync")


start_all()
machine.wait_for_unit("multi-user.target")
for place, device in PLACES.items():
    machine.succeed(f"mkfs.ext4 -q -m 0 {device} && mkdir -p {place} && mount {device} {place}")
    machine.succeed(f"rm -rf {place}/lost+found")
machine.succeed("chown root:nixbld /nix/store && chmod 1775 /nix/store && chmod 755 /build-dir")
first = instantiate("first", "echo first > $out")
code, text = build(f"--add-root /root/first {first}")
assert code == 0, text
first_out = text.strip().splitlines()[-1]

# What each build needs of the place that is full, and what is left of it then in KiB.
HOGS = {
    "/nix/store": ("busybox dd if=/dev/zero of=$out bs=1M count=20 2>&1", 4096),
    "/build-dir": (
        "busybox dd if=/dev/zero of=file bs=1M count=20 2>&1 && echo done > $out || exit 1",
        4096,
    ),
    "/nix/var/log/nix": (
        # 1 MiB that compresses to no less: more than is left, in as few lines as do.
        "busybox dd if=/dev/urandom bs=64K count=16 2>/dev/null | busybox od -v -An -tx1; echo a > $out",
        64,
    ),
    "/nix/var/nix/db": ("echo done > $out", 0),
}
for place, (script, left) in HOGS.items():
    with subtest(f"{place} is full"):
        drv = instantiate("hog" + place.replace("/", "-"), script)
        fill(place, left)
        code, text = build(drv)
        log(f"{code}: {text[-1500:]}")
        # A log that is cut off fails no build; it is told all the same.
        assert (code == 0) == (place == "/nix/var/log/nix"), text
        assert f"the file system at '{place}'" in text or "database or disk is full" in text, text
        assert "full" in text and place in text, text
        machine.succeed(f"test -e {first_out}")
        empty(place)
        machine.succeed("executor verify --check-contents")
        code, text = build(drv)
        assert code == 0, text
        # What failed builds leave, the next one and a collection take away.
        machine.succeed("executor gc 2>&1")
        machine.succeed('test -z "$(ls -A /build-dir)"')
machine.shutdown()
