"""The attacks that are tried on this executor and on stock Nix: builders, and who judges them.

Each is one that a test by row tries here in more depth.
"""

from __future__ import annotations

from tests.hostile import judges
from tests.hostile.attempts import Attack

_LITTER = """
for d in /build /tmp $out; do
    busybox mkdir -p $d/sub; echo x > $d/sub/file; busybox mkfifo $d/pipe
    busybox chmod 0 $d/sub
done
"""
_RANGE_INPUT = """
try() {
    name=$1; shift
    if busybox "$@" 2>/dev/null; then echo "$name OK"; else echo "$name no"; fi
}
try umount umount $given
try remount mount -o remount,rw,bind $given
try umount_proc umount /proc
try own chown 70000 /tmp
try settings sh -c 'exec 9>/proc/sys/kernel/core_pattern'
"""

ATTACKS = (
    Attack(
        "find files of the host",
        (1, 46),
        "busybox find / -xdev -mindepth 1 -maxdepth 1; busybox find / -type s 2>/dev/null || true",
        judges.silent("/bin", "/build", "/dev", "/etc", "/nix", "/proc", "/tmp"),
    ),
    Attack(
        "read a store path that is no input",
        (2,),
        "busybox ls -1 /nix/store | busybox wc -l",
        judges.says("0", "other paths are there"),
    ),
    Attack(
        "change an input",
        (3, 106),
        "attack input $given",
        judges.input,
    ),
    Attack(
        "change an input that somebody left open to all",
        (3,),
        "attack input $given",
        judges.input,
        open_input=True,
    ),
    Attack(
        "change the parts of its root",
        (4,),
        "for p in /etc/new /etc/passwd /etc/hosts /bin/sh /bin/busybox /bin/new /new /nix/new"
        ' /dev/new; do (echo x > $p) 2>/dev/null && echo "$p" || true; done',
        judges.silent(),
    ),
    Attack(
        "find devices that are not for builds",
        (6,),
        "busybox ls -1 /dev | busybox grep -vx kvm",
        judges.says(
            "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero".replace(
                " ", "\n"
            ),
            "there are other devices",
        ),
    ),
    Attack("make devices and use them", (7,), "attack nodes /build", judges.devices),
    Attack("climb out of its root", (8,), "attack escape; attack pivot", judges.is_inside),
    Attack(
        "find descriptors of who starts it",
        (10,),
        "busybox ls -1 /proc/$$/fd",
        judges.descriptors,
    ),
    Attack(
        "find a working directory outside",
        (11,),
        "busybox pwd; cd ../../../../..; [ . -ef / ] && busybox pwd",
        judges.says("/build\n/", "the directory lies outside"),
    ),
    Attack(
        "overwrite the program that started it",
        (12,),
        "for e in /proc/1/exe /proc/self/exe; do (exec 9<>$e) 2>/dev/null && echo $e; done; true",
        judges.silent(),
    ),
    Attack(
        "find secrets of who starts it",
        (14,),
        "c=${canary}; unset canary; for f in /proc/[0-9]*/cmdline /proc/[0-9]*/maps; do"
        " busybox grep -l $c $f || true; done; busybox tr '\\0' '\\n' < /proc/$$/environ |"
        " busybox grep -c ^CANARY || true",
        judges.says("0", "its environment comes through"),
    ),
    Attack("be root outside", (17,), "PAUSE", judges.found, meanwhile=judges.mapped),
    Attack(
        "write to settings of the kernel",
        (18,),
        "for p in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/vm/overcommit_memory;"
        " do (exec 9>$p) 2>/dev/null && echo $p; done;"
        " (echo -1000 > /proc/self/oom_score_adj) 2>/dev/null && echo oom_score_adj; true",
        judges.silent(),
    ),
    Attack(
        "see more of /proc than its own",
        (20,),
        "busybox grep ' /proc ' /proc/self/mountinfo; busybox ls -1 /proc | busybox grep '^[0-9]'",
        judges.proc,
    ),
    Attack(
        "mount over directories of the host",
        (26,),
        "busybox unshare -Urm busybox sh -c 'for d in /tmp /build /nix/store /etc /proc /dev;"
        " do busybox mount -t tmpfs mounted-by-the-builder $d; done; PAUSE' || true",
        judges.found,
        meanwhile=judges.host_mounts,
    ),
    Attack(
        "open its directories to others",
        (35, 98, 99, 101),
        "busybox chmod 777 . .. / /tmp /nix/store 2>/dev/null || true; busybox mkdir $out;"
        " busybox chmod 777 $out; PAUSE; busybox chmod 755 $out",
        judges.found,
        meanwhile=judges.outsiders,
    ),
    Attack(
        "have set-id files on the disk while it runs",
        (34, 35),
        "attack set-id /build; PAUSE",
        judges.found,
        meanwhile=judges.set_id_on_disk,
    ),
    Attack(
        "have set-id files kept after it failed",
        (103,),
        "attack set-id /build; exit 1",
        judges.kept,
        keeps_failed=True,
    ),
    Attack(
        "connect to an abstract socket of the host (fixed output)",
        (43,),
        "attack give out $meeting-outside $out; busybox rm -f $out",
        judges.given_away,
        kind="fixed",
        meets=True,
    ),
    Attack(
        "let the host connect to an abstract socket, and give away its output (fixed output)",
        (44, 64),
        "attack give in $meeting $out || true; echo made > $out",
        judges.given_away,
        kind="fixed",
        meets=True,
    ),
    Attack(
        "give away its output through a directory of the host",
        (64,),
        "attack give out /meeting/socket $out; echo made > $out",
        lambda seen: ["the registered output is changed"] if seen.content_changed else [],
        meets=True,
    ),
    Attack(
        "use the network (ordinary)",
        (47,),
        "attack route",
        judges.worked(route="there is a way out"),
    ),
    Attack(
        "reach services of the host's loopback (fixed output)",
        (48,),
        "attack reach $port",
        judges.reached,
        kind="fixed",
    ),
    Attack(
        "change how the host finds names (fixed output)",
        (49,),
        "(echo x >> /etc/resolv.conf) 2>/dev/null && echo written; true",
        judges.silent(),
        kind="fixed",
    ),
    Attack(
        "leave objects, files and processes for the next build",
        (53, 104, 121),
        "attack ipc make; echo x > /dev/shm/left; echo x > /tmp/left; echo x > left",
        judges.later,
        then="attack ipc look; busybox find /build /tmp /dev/shm -mindepth 1;"
        " busybox ls -1 /proc | busybox grep '^[0-9][0-9][0-9]' || true; echo looked",
    ),
    Attack(
        "signal, trace or change processes of the host",
        (54,),
        "attack hunt $process",
        judges.nothing_works,
    ),
    Attack(
        "read keys of who starts it",
        (56,),
        "attack key $canary",
        judges.worked(find_key="a key in the session keyring of who starts it is found"),
    ),
    Attack(
        "type into its terminal",
        (57,),
        "attack terminal",
        judges.worked(type="the log's terminal takes what it types; nobody reads there"),
    ),
    Attack(
        "have groups of who starts it",
        (61,),
        "busybox id -G",
        judges.says("100", "groups of the host"),
    ),
    Attack(
        "run a set-id program that it is shown",
        (36,),
        "/set-id/busybox id -u; /set-id/busybox grep CapEff /proc/self/status | busybox cut -f2",
        judges.says("1000\n0{16}", "the program has more rights"),
    ),
    Attack(
        "ask for less of a sandbox by an attribute",
        (42,),
        "busybox ls -d /root 2>/dev/null || true",
        judges.nothing_said,
        environment={"__noChroot": "1"},
    ),
    Attack(
        "speak to the daemon",
        (63,),
        "busybox ls -d /nix/var /run /var 2>/dev/null || true; busybox env |"
        " busybox grep ^NIX_REMOTE || true",
        judges.silent(),
    ),
    Attack(
        "take another id",
        (61, 66),
        "attack ids",
        judges.nothing_works,
    ),
    *(
        Attack(
            f"leave a process behind that writes to the output ({how})",
            (65, 67, 159) if how != "mapped" else (65, 67),
            f"echo good > $out; attack leave $out {how}; echo good > $out",
            judges.unchanged,
        )
        for how in ("plain", "mapped", "traced", "vforked", "stopped")
    ),
    *(
        Attack(
            f"plant links where root might write ({kind})",
            (70, 86),
            "for s in tmp lock check old part new tmp-1 rewritten chroot drv nar; do"
            " busybox ln -s $victims/shadow $out.$s; done; busybox ln -s $victims/shared"
            " /nix/store/.links; echo tried",
            judges.victims,
            kind=kind,
        )
        for kind in ("ordinary", "fixed", "floating")
    ),
    Attack(
        "have links in its output followed",
        (71, 72),
        "busybox mkdir $out; busybox ln -s $victims/shadow $out/a; busybox ln -s $victims $out/b;"
        " busybox ln -s / $out/root; busybox ln -s loop $out/loop; echo tried",
        judges.victims,
    ),
    Attack(
        "link files of others into its output",
        (74,),
        "busybox mkdir $out; for f in $given/file /dev/null /bin/sh /etc/passwd /proc/self/exe; do"
        " busybox ln $f $out/x 2>/dev/null && echo $f; done; true",
        judges.silent(),
    ),
    *(
        Attack(
            f"make a {what} part of its output",
            (82,),
            f"busybox mkdir $out; {command}; echo tried",
            judges.refused,
        )
        for what, command in (
            ("pipe", "busybox mkfifo $out/x"),
            ("whiteout", "busybox mknod $out/x c 0 0"),
        )
    ),
    Attack(
        "have set-id bits and open modes in the store",
        (84, 87),
        "busybox mkdir $out; attack set-id $out; for m in 000 666 777; do echo x > $out/f$m;"
        " busybox chmod $m $out/f$m; done; busybox chmod 777 $out/fresh 2>/dev/null || true",
        judges.modes,
    ),
    *(
        Attack(
            f"get extended attributes into the store ({kind})",
            (37, 40, 88),
            "echo made > $out; attack attributes $out",
            judges.attributes,
            kind=kind,
        )
        for kind in ("ordinary", "uid-range")
    ),
    Attack(
        "have an output of 500 levels",
        (90,),
        "busybox mkdir $out; attack deep $out 500 1; echo tried",
        judges.refused,
    ),
    Attack(
        "have an output of 4 TiB read (timeout: 3 s)",
        (92, 158),
        "busybox truncate -s 4096G $out",
        judges.in_time(20, "it is read without end"),
        options={"timeout": "3"},
    ),
    Attack("fail and leave its files", (102,), _LITTER + "exit 1", judges.left_in_the_store),
    Attack(
        "print without end (limit: 10 kB)",
        (158,),
        "exec busybox yes",
        judges.in_time(20, "it is not stopped"),
        options={"max-build-log-size": "10000"},
    ),
    Attack(
        "close its output and run on (timeout: 3 s)",
        (161,),
        "exec >&- 2>&-; busybox sleep 25",
        judges.in_time(15, "it is not stopped"),
        options={"timeout": "3"},
    ),
    Attack(
        "be deaf to signals (timeout: 3 s)",
        (159,),
        "trap '' TERM HUP INT QUIT; while true; do busybox sleep 1 || true; done",
        judges.in_time(15, "it is not stopped"),
        options={"timeout": "3"},
    ),
    Attack(
        "outlive who started it, who is killed",
        (163,),
        "PAUSE; PAUSE",
        lambda s: s.found,
        meanwhile=judges.killed,
    ),
    Attack(
        "undo its mounts, as root of an id range",
        (27, 62),
        _RANGE_INPUT,
        judges.worked(
            umount="its inputs are unmounted",
            remount="its inputs are made writable",
            umount_proc="/proc is unmounted",
            own="a file is given to an id of the host",
            settings="settings of the kernel can be written",
        ),
        kind="uid-range",
    ),
    Attack(
        "read where on the host its directories lie",
        (112,),
        "busybox grep -c attempt- /proc/self/mountinfo || true",
        judges.says("0", "/proc/self/mountinfo shows where"),
    ),
)

# No attack: what real programs do.
PROGRAMS = Attack(
    "programs",
    (),
    "exec /usr/bin/python3 -I /bin/programs.py",
    lambda _seen: [],
    patience=250,
    shows_programs=True,
)
