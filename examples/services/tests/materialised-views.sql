create table t as select 1 as i;
create materialized view v as select sum(i) as s from t;
insert into t values (2);
refresh materialized view v;
do $$ begin assert (select s from v) = 3; end $$;
