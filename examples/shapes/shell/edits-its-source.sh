#!/bin/sh
set -eu
# The working tree is copy-on-write: what a test does to it is its own.
echo changed > testyard.toml
rm -r python
test "$(cat testyard.toml)" = changed
test ! -e python
