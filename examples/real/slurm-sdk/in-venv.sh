#!/bin/sh
# Runs a command with the virtual environment's programs first: jobs that the tests start call `python`.
PATH="$PWD/.venv/bin:$PATH" exec "$@"
