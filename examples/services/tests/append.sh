redis-cli append text one
redis-cli append text two
test "$(redis-cli get text)" = onetwo
