create table number as select generate_series(1, 10000) as i;
create unique index on number (i);
analyze number;
do $$ begin assert (select count(*) from number where i between 10 and 19) = 10; end $$;
