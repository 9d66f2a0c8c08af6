create table line (text text);
copy line from program 'seq 1 1000';
do $$ begin assert (select count(*) from line) = 1000; end $$;
