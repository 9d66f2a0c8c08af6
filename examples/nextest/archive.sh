#!/bin/sh
# Builds the tests into an archive, as a build server would; takes it apart again and writes down what is in it, as a test
# server would. The second half needs no compiler and no source.
set -eu
cd "$(dirname "$0")"
mkdir -p build
cargo nextest archive --offline --locked --target-dir build/target --archive-file build/tests.tar.zst
rm -rf build/archive build/tests
mkdir build/archive
cargo nextest list --archive-file build/tests.tar.zst --extract-to build/archive > /dev/null
for program in build/archive/target/debug/deps/*; do
    [ -f "$program" ] && [ -x "$program" ] || continue
    name=$(basename "$program" | sed 's/-[0-9a-f]*$//')
    "$program" --list --format terse > build/list
    sed -n 's/: test$//p' build/list | while read -r test; do
        file=build/tests/$name/$(printf %s "$test" | sed 's,::,/,g').test
        mkdir -p "$(dirname "$file")"
        printf '%s\n%s\n' "$program" "$test" > "$file"
    done
done
