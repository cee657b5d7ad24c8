"""What stock clients are asked to do at a daemon, in their order, and what must come of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

PUBLIC_KEY = "side-1:M7OXeHe4n3zTiJ/LG6M1HBivPRmlp19TKiMdwXXnoo0="
# Made for these tests.
SECRET_KEY = (
    "side-1:KXCCkNFFF2kseypenzif2TXgGwG5wxHifSmsEhzIFh0"
    "zs5d4d7iffNOIn8sbozUcGK89GaWnX1MqIx3BdeeijQ=="
)
OTHER_KEY = (
    "other-1:+ejnxGRHCEiF5hlMdvsZLCowvRRRYiWQxcftTgk2v9"
    "r0eiS32TgAKkFNlWkozEx3ANfx0RY+h75qPcVxEhGgjg=="
)
NIX_FILE = """\
let
  make = name: script: more: derivation ({
    inherit name;
    system = "x86_64-linux";
    builder = "/bin/sh";
    args = [ "-c" script ];
  } // more);
  floating = {
    __contentAddressed = true;
    outputHashMode = "recursive";
    outputHashAlgo = "sha256";
  };
in rec {
  dep = make "dep" "echo of dep; echo dep > $out" { };
  top = make "top" "echo of top; echo $dep > $out" { inherit dep; };
  two = make "two" "echo out > $out; echo $out > $dev" { outputs = [ "out" "dev" ]; };
  bad = make "bad" "echo oh; exit 3" { };
  above = make "above" "echo $bad > $out" { inherit bad; };
  none = make "none" "echo nothing" { };
  random = make "random" "cat /proc/sys/kernel/random/uuid > $out" { };
  slow = make "slow" "echo begun; read x < /dev/zero & wait" { };
  elsewhere = make "elsewhere" "" { system = "m68k-linux"; };
  fixed = make "fixed" "echo fixed > $out" {
    outputHash = "sha256-DDBxQY5jVuYUiYyE7QZMqV6IVRvAgRtTS98ZUuza5TQ=";
    outputHashMode = "flat";
  };
  wrong = make "wrong" "echo wrong > $out" {
    outputHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    outputHashMode = "flat";
  };
  ca = make "ca" "echo of ca; echo ca > $out" floating;
  on-ca = make "on-ca" "read x < $ca; echo $x $ca > $out" (floating // { inherit ca; });
  package = make "package" "echo program > $out" { type = "derivation"; };
}
"""
FILES = {
    "file": "of a file\n",
    "tree/program": "#! /bin/sh\n",
    "tree/sub/data": "of a tree\n",
    "default.nix": NIX_FILE,
    "key": SECRET_KEY,
    "other-key": OTHER_KEY,
}


@dataclass(frozen=True)
class Step:
    """A command of clients from version ``since`` to before ``until``, and what comes of it.

    Both daemons let it end with ``code``, print ``says`` among other things and tell ``tells``.
    What it prints, and with a current Nix what it tells, are the same with both, unless
    ``PRINTED_OTHERWISE`` or ``TOLD_OTHERWISE`` says why not.
    """

    name: str
    words: tuple[str, ...]
    code: int = 0
    says: str = ""
    tells: str = ""
    since: tuple[int, ...] = (2, 8)
    until: tuple[int, ...] = (99,)

    def __str__(self) -> str:
        return self.name

    def newer(self, *since: int) -> Step:
        return replace(self, since=since)

    def older(self, *until: int) -> Step:
        return replace(self, until=until)


def _step(name: str, words: str, code: int = 0, says: str = "", tells: str = "") -> Step:
    return Step(name, tuple(words.split()), code, says, tells)


def _shell(name: str, script: str, code: int = 0, says: str = "", tells: str = "") -> Step:
    return Step(name, ("sh", "-c", script), code, says, tells)


_OLD_BUILDS = [
    _step("build", "nix-build -A top", says="-top", tells="of dep\n"),
    _step("again", "nix-build --no-out-link -A top", says="-top"),
    _step("instantiate", "nix-instantiate -A two", says="-two.drv"),
    _step("dry", "nix-store --realise --dry-run @instantiate@", tells="will be built"),
    _step("realise", "nix-store -r @instantiate@", says="-two-dev"),
    _step("check", "nix-build --no-out-link --check -A top", tells="checking outputs"),
    _step("bad", "nix-build --no-out-link -A bad", 1, tells="failed with exit code 3"),
    _step("above", "nix-build --no-out-link -A above", 1, tells="1 dependenc"),
    _step("keep-going", "nix-build --no-out-link -k -A bad -A fixed", 1, tells="exit code 3"),
    _step("none", "nix-build --no-out-link -A none", 1, tells="failed to produce output"),
    _step("wrong", "nix-build --no-out-link -A wrong", 1, tells="hash mismatch"),
    _step("fixed", "nix-build --no-out-link -A fixed", says="-fixed"),
    _step("elsewhere", "nix-build --no-out-link -A elsewhere", 1, tells="m68k-linux"),
    _step("slow", "nix-build --no-out-link --timeout 1 -A slow", 1, tells="timed out after 1"),
    _step("random", "nix-build --no-out-link -A random", says="-random"),
    _step("unequal", "nix-build --no-out-link --check -A random", 1, tells="deterministic"),
    _step("ca-old", "nix-build --no-out-link -A on-ca", says="-on-ca", tells="of ca\n"),
    _step("install", "nix-env -p /nix/w/profile -f default.nix -iA package", tells="installing"),
    _step("installed", "nix-env -p /nix/w/profile -q --out-path", says="-package"),
]
_NEW_BUILDS = [
    _step("new", "nix build -f default.nix two"),
    _step("new-paths", "nix build -f default.nix two --print-out-paths", says="-two").newer(2, 9),
    _step("logs", "nix build --rebuild -L --no-link -f default.nix top", tells="top> of top"),
    _step("new-bad", "nix build --no-link -f default.nix bad", 1, tells="exit code 3"),
    _step("new-json", "nix build --no-link -f default.nix top two --json", says="drvPath"),
    _step("new-ca", "nix build --no-link -f default.nix on-ca --json", says="-on-ca"),
    _step("new-wrong", "nix build --no-link -f default.nix wrong", 1, tells="hash mismatch"),
    _step("eval", "nix eval --raw -f default.nix top.outPath", says="-top"),
    _step("why", "nix why-depends -f default.nix top dep", says="-dep"),
    _step("realisation", "nix realisation info --json -f default.nix ca", says="outPath"),
    _step("show", "nix derivation show -f default.nix top", says="top").newer(2, 15),
    _step("log", "nix log -f default.nix top", says="of top\n"),
    _step("no-log", "nix log @file@", 1, tells="not available"),
    _step("old-log", "nix-store --read-log @build@", says="of top\n"),
]
_ADDING = [
    _step("file", "nix-store --add file", says="-file"),
    _step("added", "nix-store --add tree", says="-tree"),
    _step("flat", "nix-store --add-fixed sha1 file", says="-file"),
    _step("recursive", "nix-store --add-fixed --recursive sha256 tree", says="-tree"),
    _step("add-path", "nix store add-path --name by-path tree", says="-by-path"),
    _step("add-file", "nix store add-file --name by-file file", says="-by-file"),
    _step("add", "nix store add --name new tree", says="-new").newer(2, 20),
    _step("add-flat", "nix store add --mode flat --name new-flat file", says="-new").newer(2, 20),
    _step("add-sha1", "nix store add --hash-algo sha1 --name one file", says="-one").newer(2, 22),
    _step("add-text", "nix store add --mode text --name text file", says="-text").newer(2, 24),
]
_QUERIES = [
    _step(f"query-{name}", f"nix-store -q --{name} {path}")
    for name, path in (
        ("references", "@build@"),
        ("referrers", "@dep@"),
        ("referrers-closure", "@dep@"),
        ("requisites", "@build@"),
        ("deriver", "@build@"),
        ("hash", "@build@"),
        ("size", "@build@"),
        ("outputs", "@drv@"),
        ("tree", "@build@"),
        ("graph", "@drv@"),
        ("graphml", "@build@"),
        ("roots", "@build@"),
        ("binding", "name @drv@"),
    )
]
_ASKING = [
    _step("dep", "nix-build --no-out-link -A dep", says="-dep"),
    _step("drv", "nix-instantiate -A top", says="-top.drv"),
    *_QUERIES,
    _step("derivers", "nix-store -q --valid-derivers @build@", says="-top.drv").newer(2, 13),
    _step("query-include", "nix-store -qR --include-outputs @drv@", says="-dep"),
    _step("print-env", "nix-store --print-env @drv@", says="export"),
    _step("valid", "nix-store --check-validity @build@"),
    _step("info", "nix path-info --json -S @build@", says="narHash"),
    _step("infos", "nix path-info -rsSh @build@", says="-dep"),
    _step("info-all", "nix path-info --all", says="-dep"),
    _step("info-missing", "nix path-info /nix/store/00000000000000000000000000000000-x", 1),
    _step("ping", "nix store ping", tells="daemon").older(2, 20),
    _step("store-info", "nix store info --json", says='"trusted":true').newer(2, 20),
    _step("ls", "nix store ls --json -R @added@", says="program"),
    _step("ls-l", "nix store ls -lR @added@", says="program"),
    _step("cat", "nix store cat @added@/sub/data", says="of a tree\n"),
    _step("dump-path", "nix store dump-path @added@", says="of a tree\n"),
    _step("dump", "nix-store --dump @added@", says="of a tree\n"),
    _step("dump-db", "nix-store --dump-db @build@ @dep@", says="-dep"),
]
_MOVING = [
    _step("export", "nix-store --export @added@", says="of a tree\n"),
    _shell("import", "nix-store --export @added@ > x && nix-store --import < x", says="-tree"),
    _step("to-cache", "nix copy --to file:///nix/w/cache?compression=none @build@"),
    _step("to-store", "nix copy --no-check-sigs --to /nix/w/other @build@"),
    _step("cache-info", "nix path-info --json --store file:///nix/w/cache @build@", says="side-1:"),
    _step("alive", "nix-store --delete @dep@", 1, tells="still alive"),
    _step("unroot", "rm result"),
    _step("delete", "nix-store --delete @build@", says="1 store paths deleted"),
    _step("gone", "nix-store --check-validity @build@", 1, tells="is not valid"),
    _step("from-cache", "nix copy --from file:///nix/w/cache @build@"),
    _step("delete-new", "nix store delete @build@", says="1 store paths deleted"),
    _step("unsigned", "nix copy --from /nix/w/other @build@"),
    _step("delete-more", "nix store delete @build@", says="1 store paths deleted"),
    _step(
        "substitute",
        "nix-store -r @build@ --option substituters file:///nix/w/cache",
        says="-top",
        tells="copying path",
    ),
    _step("verify-new", "nix store verify @build@ @dep@"),
    _step("verify-more", "nix store verify --sigs-needed 2 @build@", 2, tells="untrusted"),
    _step("sign", "nix store sign --key-file other-key @build@"),
    _step("signed", "nix path-info --sigs @build@", says="other-1:"),
    _step("make-ca", "nix store make-content-addressed @build@", tells="rewrote"),
    _step("diff", "nix store diff-closures @dep@ @build@"),
    _step("copy-sigs", "nix store copy-sigs -s file:///nix/w/cache @build@", tells="imported"),
    _step("copy-log", "nix store copy-log --to file:///nix/w/cache @drv@"),
]
_KEEPING = [
    _step("add-root", "nix-store --add-root /nix/w/root -r @dep@", says="/nix/w/root"),
    _step("roots", "nix-store --gc --print-roots", says="/nix/w/root"),
    _step("live", "nix-store --gc --print-live", says="-dep"),
    _step("dead", "nix-store --gc --print-dead", says="-top"),
    _step("verify", "nix-store --verify --check-contents"),
    _step("verify-path", "nix-store --verify-path @dep@"),
    _step("optimise", "nix-store --optimise"),
    _step("optimise-new", "nix store optimise"),
    _shell("damage", "rm @dep@ && echo bad > @dep@"),
    _step("verify-bad", "nix-store --verify --check-contents", 1, tells="was modified"),
    _step("verify-path-bad", "nix-store --verify-path @dep@", 1, tells="was modified"),
    _step("verify-new-bad", "nix store verify @dep@", 1, tells="was modified"),
    _step("repair-path", "nix-store --repair-path @dep@", 1),
    _step("repair", "nix store repair @dep@", 1),
    _step("mend", "nix-store --verify --check-contents --repair", tells="was modified"),
    _step("mended", "cat @dep@"),
    _step("gc-some", "nix-store --gc --max-freed 1", says="deleted"),
    _step("gc-new", "nix store gc", says="deleted"),
    _step("gc", "nix-collect-garbage", says="0 store paths deleted"),
    _step("left", "nix path-info --all", says="-dep"),
]
STEPS = [*_ADDING, *_OLD_BUILDS, *_NEW_BUILDS, *_ASKING, *_MOVING, *_KEEPING]

_LEFT = "the other daemon leaves lock files and what failed builds made; the order is anybody's"
_LOG = "this daemon adds where the log is"
_INPUTS = "this daemon adds which inputs failed"
_WHERE = "this daemon names the path of the output, and where the log is"
_WHY = "this daemon names the outputs and shows the end of the log"
_MENDED = "the other daemon finds the damage, says nothing more, and leaves it"
_HINT = "the other daemon names its own commands"
PRINTED_OTHERWISE = {"dead": _LEFT, "mended": _MENDED, "gc-some": _LEFT, "gc-new": _LEFT}
TOLD_OTHERWISE = {
    "above": _INPUTS,
    "none": _WHERE,
    "wrong": _LOG,
    "new-wrong": _LOG,
    "unequal": _LOG,
    "slow": _WHY,
    "alive": _HINT,
    "mend": _MENDED,
    "gc-some": _LEFT,
    "gc-new": _LEFT,
}
