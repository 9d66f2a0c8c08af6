printf 'multi\nset a 1\nincr a\nexec\n' | redis-cli >/dev/null
test "$(redis-cli get a)" = 2
