create function twice(i int) returns int language sql as 'select 2 * i';
do $$ begin assert twice(21) = 42; end $$;
