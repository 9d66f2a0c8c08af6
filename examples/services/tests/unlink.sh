redis-cli mset a 1 b 2 c 3
test "$(redis-cli unlink a b)" = 2
