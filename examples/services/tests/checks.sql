create table age (years int check (years >= 0));
do $$ begin
  begin insert into age values (-1); raise exception 'accepted'; exception when check_violation then null; end;
end $$;
