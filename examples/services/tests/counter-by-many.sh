redis-benchmark -q -n 2000 -c 20 incr hits >/dev/null
test "$(redis-cli get hits)" = 2000
