create database another;
\connect another
create table here (i int);
do $$ begin assert current_database() = 'another'; end $$;
