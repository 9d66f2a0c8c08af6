create table parent (id int primary key);
create table child (parent int references parent on delete cascade);
insert into parent values (1);
insert into child values (1);
delete from parent;
do $$ begin assert (select count(*) from child) = 0; end $$;
