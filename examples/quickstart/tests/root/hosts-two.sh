#!/bin/sh
# Names a service in /etc/hosts, and resolves it to its own address only.
set -eu
. ./guard.sh

echo "192.0.2.12 service.quickstart" >> /etc/hosts
found=$(getent hosts service.quickstart) || fail "service.quickstart has no address"
case "$found" in
    "192.0.2.12 "*) ;;
    *) fail "service.quickstart is '$found'" ;;
esac
while read -r address name rest; do
    [ "$name" != service.quickstart ] || [ "$address" = 192.0.2.12 ] || fail "$address is another test's"
done < /etc/hosts
