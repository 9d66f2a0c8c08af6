for i in 1 2 3 4 5; do redis-cli incr hits; done
test "$(redis-cli get hits)" = 5
