#!/bin/sh
# Mounts a file system at /mnt, and leaves it there.
set -eu
. ./guard.sh

while read -r device point rest; do
    [ "$point" != /mnt ] || fail "$device is mounted at /mnt already"
done < /proc/self/mounts
mount -t tmpfs -o size=1M one /mnt
echo one > /mnt/here
mount -o remount,bind,ro /mnt
read -r word < /mnt/here
same "$word" one
