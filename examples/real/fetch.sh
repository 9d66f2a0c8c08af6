#!/bin/sh
# Fetches the source distribution of slurm-sdk by name, unpacks it, and makes its virtual environment.
# Prints the project's folder. Done once; delete the cache folder to do it again.
#
#   TESTYARD_REAL_CACHE   where to keep it (default: .cache beside this file)
#   PYTHON                the interpreter (default: /usr/bin/python3, which environments can see)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${TESTYARD_REAL_CACHE:-$here/.cache}
python=${PYTHON:-/usr/bin/python3}
name=slurm-sdk
version=0.4.6
project=$cache/slurm_sdk-$version

say() {
    echo "$*" >&2
}

if ! "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
    say "error: $python is not Python 3.11 or newer with venv"
    say "hint: apt-get install python3-venv"
    exit 69
fi

if [ ! -e "$project/.venv/complete" ]; then
    mkdir -p "$cache"
    # A half-made one of an earlier try.
    rm -rf "$project" "$cache/download"
    # pip itself comes from a virtual environment: Debian's python3 has none.
    "$python" -m venv "$cache/download"
    say "fetching $name $version"
    if ! "$cache/download/bin/pip" download --quiet --no-deps --no-binary :all: --dest "$cache/download" \
        "$name==$version" >&2; then
        say "error: pip cannot fetch the source distribution of $name $version"
        exit 77
    fi
    tar -xzf "$cache/download/slurm_sdk-$version.tar.gz" -C "$cache"
    say "installing what its tests need"
    "$python" -m venv "$project/.venv"
    (cd "$project" && .venv/bin/pip install --quiet --editable '.[tui]' 'pytest>=8.3.4' 'pytest-testinfra>=10') >&2
    # So that the source has a boundary, and its ignored files are known as such.
    [ -e "$project/.git" ] || git -C "$project" init --quiet
    : > "$project/.venv/complete"
    rm -rf "$cache/download"
fi
cp "$here/slurm-sdk/suite.toml" "$project/testyard.toml"
cp "$here/slurm-sdk/testyard.ini" "$here/slurm-sdk/testyard_counts.py" "$here/slurm-sdk/in-venv.sh" "$project/"
echo "$project"
