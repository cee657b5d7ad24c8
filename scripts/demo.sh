#!/bin/sh
# Builds examples/ in a store under this checkout and shows what came of it.
set -eu
cd "$(dirname "$0")/.."

store=./demo-store
export NIX_CONF_DIR="$PWD/examples" NIX_USER_CONF_FILES=

executor() { .venv/bin/executor "$@"; }

outputs=$(executor build --store "$store" --print-build-logs examples/demo.json)
echo
echo "Outputs, their references, and where they lie:"
for output in $outputs; do
    echo "  $output  (in $store)"
    executor query --store "$store" --references "$output" | sed 's/^/      refers to /'
done
echo
echo "What the built program said when welcome was built:"
for output in $outputs; do
    case $output in *-welcome) sed 's/^/  /' "$store$output/welcome.txt" ;; esac
done
