#!/bin/sh
# Makes a file of a fixed name in /dev/shm.
set -eu
. ./guard.sh

absent /dev/shm/quickstart
echo one > /dev/shm/quickstart
read -r word < /dev/shm/quickstart
same "$word" one
