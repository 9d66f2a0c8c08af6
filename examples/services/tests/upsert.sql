create table t (key text primary key, hits int);
insert into t values ('a', 1) on conflict (key) do update set hits = t.hits + 1;
insert into t values ('a', 1) on conflict (key) do update set hits = t.hits + 1;
do $$ begin assert (select hits from t) = 2; end $$;
