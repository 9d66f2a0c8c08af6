#!/bin/sh
# Compiles the tests that need it into ./build.
set -eu
cd "$(dirname "$0")"
mkdir -p build/rust build/c
"${RUSTC:-rustc}" --edition 2021 --test rust/lib.rs -o build/rust/shapes
build/rust/shapes --list --format terse | sed -n 's/: test$//p' | while read -r name; do
    # A function in a module is a file in a folder.
    file=build/rust/$(printf %s "$name" | sed 's,::,/,g').test
    mkdir -p "$(dirname "$file")"
    printf '%s\n' "$name" > "$file"
done
for source in c/*.c; do
    "${CC:-cc}" -Wall -o "build/c/$(basename "$source" .c)" "$source"
done
