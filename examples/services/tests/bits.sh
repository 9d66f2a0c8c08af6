redis-cli setbit flags 7 1
test "$(redis-cli bitcount flags)" = 1
