#!/bin/sh
# The peer of the benchmark: the same files with the same options, one pytest a file, two at a time, largest first.
#
#   JOBS   how many at a time (default 2)
set -eu
project=$("$(dirname "$0")/fetch.sh")
cd "$project"
find tests -name 'test_*.py' -printf '%s %p\n' | sort -rn | cut -d ' ' -f 2 |
    PYTHONDONTWRITEBYTECODE=1 xargs -P "${JOBS:-2}" -n 1 ./in-venv.sh python -m pytest -c testyard.ini
