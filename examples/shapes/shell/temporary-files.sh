#!/bin/sh
set -eu
# The same name as in other tests, and nobody minds.
test ! -e /tmp/of-this-test
echo one > /tmp/of-this-test
test "$(cat /tmp/of-this-test)" = one
