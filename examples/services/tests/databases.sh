redis-cli -n 3 set key there
test -z "$(redis-cli get key)"
test "$(redis-cli -n 3 get key)" = there
