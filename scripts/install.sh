#!/bin/sh
# Installs the executor and its service: a virtual environment under PREFIX/lib/executor, the
# program under PREFIX/bin, the units under PREFIX/lib/systemd/system. Starts nothing.
#
#   install.sh [--prefix /usr/local] [--destdir DIR] [--wheels DIR] [--replace-nix-daemon]
#
# --wheels             take the project and all that it needs from wheels in DIR, and nothing from
#                      the network
# --replace-nix-daemon listen where Nix's clients look for nix-daemon, which is kept from starting
set -eu

prefix=/usr/local destdir="" wheels="" replace=no
while [ $# -gt 0 ]; do
    case $1 in
        --prefix) prefix=$2; shift 2 ;;
        --destdir) destdir=$2; shift 2 ;;
        --wheels) wheels=$2; shift 2 ;;
        --replace-nix-daemon) replace=yes; shift ;;
        *) echo "install: unknown argument '$1'" >&2; exit 2 ;;
    esac
done
case $prefix in
    /*) ;;
    *) echo "install: the prefix '$prefix' is not absolute" >&2; exit 2 ;;
esac
project=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
home=$prefix/lib/executor

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || { echo "install: Python 3.11 or newer is needed; set PYTHON to one" >&2; exit 1; }

rm -rf "$destdir$home"
mkdir -p "$destdir$home" "$destdir$prefix/bin" "$destdir$prefix/lib/systemd/system"
"$python" -m venv "$destdir$home"
if [ -n "$wheels" ]; then
    "$destdir$home/bin/python" -m pip install --quiet --disable-pip-version-check \
        --root-user-action=ignore --no-index --find-links "$wheels" executor
else
    "$destdir$home/bin/python" -m pip install --quiet --disable-pip-version-check \
        --root-user-action=ignore "$project"
fi
# The scripts of the environment name the interpreter; where it will be, and not where it is now.
if [ -n "$destdir" ]; then
    grep -rIlF "$destdir$home" "$destdir$home/bin" "$destdir$home/pyvenv.cfg" \
        | xargs -r sed -i "s|$destdir$home|$home|g"
fi
ln -sf "../lib/executor/bin/executor" "$destdir$prefix/bin/executor"

socket=/run/executor/socket
[ $replace = no ] || socket=/nix/var/nix/daemon-socket/socket
for unit in executor.socket executor.service; do
    sed -e "s|@executor@|$prefix/bin/executor|" -e "s|@socket@|$socket|" \
        -e "s|@documentation@|file:$prefix/share/doc/executor/README.md|" \
        "$project/systemd/$unit.in" > "$destdir$prefix/lib/systemd/system/$unit"
done
if [ $replace = yes ]; then
    for unit in executor.socket executor.service; do
        mkdir -p "$destdir$prefix/lib/systemd/system/$unit.d"
        printf '[Unit]\nConflicts=nix-daemon.socket nix-daemon.service\n' \
            > "$destdir$prefix/lib/systemd/system/$unit.d/replace-nix-daemon.conf"
    done
fi
mkdir -p "$destdir$prefix/share/doc/executor"
cp "$project/README.md" "$destdir$prefix/share/doc/executor/"
if [ -d "$project/docs" ]; then cp "$project"/docs/*.md "$destdir$prefix/share/doc/executor/"; fi

if [ -z "$destdir" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    echo "installed; start it with: systemctl enable --now executor.socket" >&2
fi
