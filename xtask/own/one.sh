#!/bin/sh
# Runs the one test function that a file of target/own is named after. A name that selects nothing is no success.
set -eu
root=$PWD
name=$(basename "$(dirname "$1")")
TESTYARD_SKIP_LOG=$root/target/own/skips.jsonl
export TESTYARD_SKIP_LOG
before=$(wc -c < "$TESTYARD_SKIP_LOG")
cd "$(cat "target/own/programs/$name.folder")"
said=$("$root/target/own/programs/$name" --exact "$(basename "$1")" 2>&1) && code=0 || code=$?
printf '%s\n' "$said"
test "$code" = 0 || exit "$code"
case $said in *"test result: ok. 1 passed"*) ;; *) exit 1 ;; esac
# What an environment writes is gone with it, and a skip in it would be silent.
case $1 in
target/own/isolated/*) test "$(wc -c < "$TESTYARD_SKIP_LOG")" = "$before" || { echo "it skipped itself" >&2; exit 1; } ;;
esac
