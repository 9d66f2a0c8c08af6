do $$ begin
  assert (select max(r) from (select row_number() over (order by i desc) as r from generate_series(1, 50) as i) as n) = 50;
end $$;
