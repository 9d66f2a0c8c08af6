#!/bin/sh
set -eu
code=0
sh -c 'exit 7' || code=$?
test "$code" = 7
