#!/bin/sh
# What slurm-sdk's suite asks of a container engine, asked of a cluster's first node: `docker exec slurm-test …` runs there
# as root. It has no containers, images or registry.
case $1 in
info)
    exit 0
    ;;
inspect)
    [ "$2" = slurm-test ]
    ;;
exec)
    shift
    while :; do
        case $1 in
        -u | --user) shift 2 ;;
        -*) shift ;;
        *) break ;;
        esac
    done
    shift
    exec "$CONFORMANCE_TESTYARD" cluster exec "$CONFORMANCE_CLUSTER" 1 --user root -- "$@"
    ;;
*)
    echo "docker: this one only enters a cluster's first node" >&2
    exit 125
    ;;
esac
