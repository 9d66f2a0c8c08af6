psql -qc 'create table account as select 100 as balance'
psql -qc 'update account set balance = balance - 30' &
psql -qc 'update account set balance = balance - 20' &
wait
test "$(psql -Atc 'select balance from account')" = 50
