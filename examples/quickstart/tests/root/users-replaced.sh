#!/bin/sh
# Replaces /etc/passwd by one in which root has another name.
set -eu
. ./guard.sh

echo "toor:x:0:0::/:/bin/sh" > /etc/passwd.new
mv /etc/passwd.new /etc/passwd
same "$(id -un)" toor
