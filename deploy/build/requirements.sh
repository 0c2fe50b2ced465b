#!/bin/sh
# Compiles pyproject.toml into pinned and hashed requirement files. The files name neither a registry nor this machine.
# Usage: deploy/build/requirements.sh [path of uv] [--upgrade]
set -eu
cd "$(dirname "$0")/../.."
uv=${1:-uv}
upgrade=${2:-}

compile() { # file, first line, further arguments
    file=$1 title=$2
    shift 2
    body=$(mktemp)
    # Versions already in the file are kept unless --upgrade is given.
    [ -f "$file" ] && grep -v '^#' "$file" >"$body" || true
    # shellcheck disable=SC2086
    env -u UV_FIND_LINKS "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links $upgrade "$@" -o "$body" >/dev/null
    { printf '# %s\n# Compiled by `make requirements`; do not edit by hand.\n' "$title"; cat "$body"; } >"$file"
    rm -f "$body"
}

printf 'uv\n' | compile requirements-bootstrap.txt "The installer that installs the rest." -
compile requirements.txt "Everything that runs: the product and the one-machine stack." pyproject.toml --extra local
compile requirements-dev.txt "The same plus what tests and checks need." pyproject.toml --extra local --extra dev \
    -c requirements.txt
