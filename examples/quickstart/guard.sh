# Sourced by every test in sh: refuses to run on a bare machine, and says what went wrong.
# Only shell builtins: some tests delete everything else.

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# What another test leaves must never be here.
absent() {
    for path; do
        [ ! -e "$path" ] || fail "$path is here already, so another test is not kept apart"
    done
}

same() {
    [ "$1" = "$2" ] || fail "expected '$2', got '$1'"
}

# An environment of its own holds its first process and this one, and nothing else.
visible() {
    set -- /proc/[0-9]*
    count=$#
}
visible
if [ -z "${TESTYARD_TEST-}" ] || [ "$PPID" -gt 1 ] || [ "$count" -gt 2 ]; then
    echo "refused: this test destroys the machine it runs on; run it with: testyard run examples/quickstart" >&2
    exit 2
fi
