redis-cli geoadd places 13.361389 38.115556 Palermo 15.087269 37.502669 Catania
test "$(redis-cli geodist places Palermo Catania km)" = 166.2742
