#!/bin/sh
# Unpacks a current Nix into .cache/current-nix, beside whatever Nix the machine has, for the tests:
# Debian's package, with the libraries that it needs down to the C library, from a newer release
# than this one. Nothing is installed, no script of a package runs, apt's own state stays as it is.
# The commands are below bin/ and run on the libraries that came with them; all else that they start
# or read is the machine's. The second run does nothing.
set -eu

cd "$(dirname "$0")/.."
home=$PWD/.cache/current-nix
scratch=$home.scratch
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# The first that has all packages at this moment; in testing they are seldom torn apart.
suites="testing sid"

say() { echo "setup: $*" >&2; }
die() {
    say "$*"
    say "so there is no current Nix for the tests; what apt said is in $scratch/log. If Debian's"
    say "mirror can't be reached, name another: DEBIAN_MIRROR=http://host/debian scripts/current-nix.sh"
    exit 1
}

# What was made last, and where: the paths of the libraries are in the program.
wanted="$home $(sha256sum < "$0")"
[ "$(cat "$home/made-by" 2>/dev/null)" != "$wanted" ] || exit 0

# Where this machine has its own packages from. Others than Debian may have a suite of that name:
# Debian's key tells who is who.
mirrors() {
    if [ -n "${DEBIAN_MIRROR:-}" ]; then
        echo "$DEBIAN_MIRROR"
        return
    fi
    # shellcheck source=/dev/null
    own=$(. /etc/os-release; echo "${VERSION_CODENAME:-sid}")
    # shellcheck disable=SC2016  # apt's own fields
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v own="$own" '$1 == own && $2 == "main" && !seen[$3]++ { print $3 }'
}

# An apt that knows of one source and of no package that is installed.
private_apt() {
    timeout 300 apt-get -q -y \
        -o Dir::Etc::sourcelist="$scratch/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o Dir::State="$scratch/state" -o Dir::State::status="$scratch/status" \
        -o Dir::Cache="$scratch/cache" -o APT::Sandbox::User=root \
        -o APT::Update::Error-Mode=any -o Acquire::Retries=3 "$@" >> "$scratch/log" 2>&1
}

# Download from one suite of a mirror, and believe nothing that Debian hasn't signed.
download() {
    rm -rf "$scratch/state" "$scratch/cache"
    mkdir -p "$scratch/state/lists/partial" "$scratch/cache/archives/partial"
    : > "$scratch/status"
    echo "deb [arch=$(dpkg --print-architecture) signed-by=$keyring] $1 $2 main" > "$scratch/sources.list"
    echo "== suite $2 of $1" >> "$scratch/log"
    private_apt update && private_apt --no-install-recommends --download-only install nix-bin
}

find_and_download() {
    for mirror in $(mirrors); do
        for suite in $suites; do
            ! download "$mirror" "$suite" || return 0
        done
    done
    return 1
}

rm -rf "$home" "$scratch"
mkdir -p "$home/root" "$home/bin" "$scratch"
: > "$scratch/log"
[ -e "$keyring" ] || die "'$keyring' is missing; on Debian: apt-get install debian-archive-keyring"
command -v patchelf >/dev/null || die "'patchelf' is missing; on Debian: apt-get install patchelf"
say "unpacking a current Nix into .cache/current-nix"
find_and_download || die "no suite ($suites) of a mirror ($(mirrors | tr '\n' ' ')) gave nix-bin"
# Of the others (perl, curl, passwd) nothing is run: those are the machine's.
find "$scratch/cache/archives" -name 'lib*.deb' -o -name 'zlib1g_*.deb' -o -name 'nix-bin_*.deb' |
    grep -v perl | xargs -P 2 -I{} dpkg-deb -x {} "$home/root" \
    || die "a package of $scratch/cache/archives could not be unpacked"
cd "$home"
loader=$(echo "$PWD"/root/usr/lib/*/ld-linux*.so.*)
[ -e "$loader" ] || die "what was unpacked has no loader '$loader'"
patchelf --set-interpreter "$loader" --force-rpath --set-rpath "${loader%/*}" root/usr/bin/nix \
    || die "the libraries of $PWD/root/usr/bin/nix could not be set"
for command in root/usr/bin/nix root/usr/bin/nix-*; do
    ln -s ../root/usr/bin/nix "bin/${command##*/}"
done
version=$(bin/nix --version) || die "the Nix that was unpacked doesn't run"
echo "$wanted" > made-by
rm -rf "$scratch"
say "$version is in .cache/current-nix/bin"
