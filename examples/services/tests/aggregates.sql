create table sale (shop text, amount int);
insert into sale values ('a', 1), ('a', 2), ('b', 4);
do $$ begin assert (select sum(amount) from sale where shop = 'a') = 3; end $$;
