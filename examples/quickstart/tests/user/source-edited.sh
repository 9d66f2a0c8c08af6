#!/bin/sh
# Edits the source it runs from; it is not the file of anybody else.
set -eu
. ./guard.sh

read -r word < data/shared.txt
same "$word" original
echo edited > data/shared.txt
absent data/left-behind.txt
echo one > data/left-behind.txt
read -r word < data/shared.txt
same "$word" edited
