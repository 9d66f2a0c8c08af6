create table t (i int);
begin;
insert into t values (1);
rollback;
do $$ begin assert (select count(*) from t) = 0; end $$;
