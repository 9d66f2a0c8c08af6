create role clerk;
create table secret (i int);
set role clerk;
do $$ begin
  begin perform * from secret; raise exception 'read'; exception when insufficient_privilege then null; end;
end $$;
reset role;
