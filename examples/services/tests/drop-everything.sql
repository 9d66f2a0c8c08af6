create table a (i int);
drop schema public cascade;
create schema public;
create table mark (test text);
\set test `echo $TESTYARD_TEST`
insert into mark values (:'test');
