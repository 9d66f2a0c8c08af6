create table t (i int, seen timestamptz);
create function see() returns trigger language plpgsql as $$ begin new.seen := now(); return new; end $$;
create trigger see before insert on t for each row execute function see();
insert into t values (1);
do $$ begin assert (select seen is not null from t); end $$;
