#!/bin/sh
# Writes a thousand files below /var.
set -eu
. ./guard.sh

absent /var/quickstart
mkdir /var/quickstart
number=0
while [ "$number" -lt 1000 ]; do
    echo "$number" > "/var/quickstart/$number"
    number=$((number + 1))
done
set -- /var/quickstart/*
same "$#" 1000
