#!/bin/sh
# Installs what running (`setup.sh run`), testing (`setup.sh test`) or testing in virtual machines
# (`setup.sh vm`) needs and is missing, and says what. Nothing is installed that is there already; a
# second run takes a moment.
set -eu

purpose=${1:-run}
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=.venv

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

[ "$(id -u)" = 0 ] || die "building needs root, and so does installing: run this with sudo"

# One line a need: how to see that it is there, and the Debian package that brings it.
missing=""
need() {
    package=$1; shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
header() { echo "#include <$1>" | gcc -E -o /dev/null -; }
python_headers() {
    "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'
}
header_32() { echo "#include <$1>" | gcc -m32 -E -o /dev/null -; }
library() { ldconfig -p | grep -q "$1"; }

need python3 command -v "$python"
need python3-venv "$python" -c 'import venv, ensurepip'
need python3-dev python_headers
need gcc command -v gcc
need libc6-dev header stdio.h
need libcap-dev header sys/capability.h
need busybox-static test -x /bin/busybox
need passt command -v pasta
need nftables test -x /usr/sbin/nft
need make command -v make
if [ "$purpose" = test ]; then
    need nix-bin command -v nix-store
    need xz-utils command -v xz
    need dpkg-dev command -v dpkg-source
    need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
    need procps command -v ps
    need passwd command -v useradd
    need iproute2 command -v ip
    need strace command -v strace
    need systemd command -v systemd-analyze
    need bubblewrap command -v bwrap
    need openssh-server test -x /usr/sbin/sshd
    need openssh-client command -v ssh
    need libseccomp2 library libseccomp.so.2
    need gcc-multilib header_32 stdio.h
    need patchelf command -v patchelf
    need e2fsprogs command -v mkfs.ext4
    need debian-archive-keyring test -e /usr/share/keyrings/debian-archive-keyring.gpg
fi
if [ "$purpose" = vm ]; then
    need qemu-system-x86 command -v qemu-system-x86_64
    need qemu-utils command -v qemu-img
    need debootstrap command -v debootstrap
    need debian-archive-keyring test -e /usr/share/keyrings/debian-archive-keyring.gpg
    need e2fsprogs command -v mkfs.ext4
    need kmod command -v depmod
fi

if [ -n "$missing" ]; then
    command -v apt-get >/dev/null || die "these Debian packages, or what they hold, are missing, \
and there is no apt-get to install them:$missing"
    say "installing the system packages$missing"
    export DEBIAN_FRONTEND=noninteractive
    timeout 600 apt-get -qq update || die "apt-get update failed (is the network there?)"
    # shellcheck disable=SC2086  # a list of words
    timeout 900 apt-get -qq install --no-install-recommends -y $missing >/dev/null \
        || die "apt-get could not install:$missing"
fi

# Stock Nix, the oracle, builds under these; without them it would build as root. (Debian keeps
# them in a package of their own, together with a daemon that nobody needs here.)
if [ "$purpose" = test ] && ! getent group nixbld >/dev/null; then
    say "adding the group nixbld and the users nixbld1 to nixbld10 for stock Nix"
    groupadd --system nixbld
    for number in 1 2 3 4 5 6 7 8 9 10; do
        useradd --system --gid nixbld --groups nixbld --home-dir /var/empty --no-create-home \
            --shell /usr/sbin/nologin "nixbld$number"
    done
fi

# A second oracle and client, of today: Nix of this Debian is years old. Where that can't be had, its
# tests fail and say so; CI needn't run them to know.
if [ "$purpose" = test ] && ! scripts/current-nix.sh; then
    [ -z "${CI:-}" ] || exit 1
    say "going on without: the tests with a current Nix will fail"
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || die "Python 3.11 or newer is needed; set PYTHON to one (found: $("$python" --version))"

case $purpose in
    test) target='.[dev]' ;;
    *) target=. ;;
esac
# What was installed last, so that only a change of the list installs again.
wanted="$target $("$python" --version) $(cat pyproject.toml setup.py sandbox/*.c | sha256sum)"
stamp=$venv/.installed-$purpose
if [ ! -e "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    say "installing the Python packages of pyproject.toml ($target) into $venv/"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    # "compat" names the directory in a .pth file; the default is an import hook that costs every
    # start of the executor 12 ms.
    timeout 900 "$venv/bin/pip" install --quiet --disable-pip-version-check \
        --root-user-action=ignore --config-settings editable_mode=compat -e "$target" \
        || die "pip could not install the packages (is the network there?)"
    echo "$wanted" > "$stamp"
fi
