#!/bin/sh
# Points the resolver elsewhere.
set -eu
. ./guard.sh

rm -f /etc/resolv.conf
echo "nameserver 192.0.2.53" > /etc/resolv.conf
read -r word address < /etc/resolv.conf
same "$word $address" "nameserver 192.0.2.53"
