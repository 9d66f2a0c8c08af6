#!/bin/sh
# One plain run of pytest over everything; its counts become those that check.sh holds Testyard's runs against.
set -eu
project=$("$(dirname "$0")/fetch.sh")
cd "$project"
rm -f testyard_counts.json
PYTHONDONTWRITEBYTECODE=1 TESTYARD_COUNTS_WRITE=testyard_counts.json \
    ./in-venv.sh python -m pytest -c testyard.ini tests
