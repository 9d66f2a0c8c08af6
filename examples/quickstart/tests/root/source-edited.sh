#!/bin/sh
# Edits the same file of the source, as root.
set -eu
. ./guard.sh

read -r word < data/shared.txt
same "$word" original
echo "edited by root" > data/shared.txt
absent data/left-behind.txt
echo two > data/left-behind.txt
same "$(cat data/shared.txt)" "edited by root"
