create sequence ticket;
do $$ begin assert nextval('ticket') = 1; assert nextval('ticket') = 2; end $$;
