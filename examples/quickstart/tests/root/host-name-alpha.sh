#!/bin/sh
# Changes the host name.
set -eu
. ./guard.sh

before=$(hostname)
case "$before" in
    alpha | beta) fail "the host is called $before already" ;;
esac
hostname alpha
same "$(hostname)" alpha
same "$(uname -n)" alpha
