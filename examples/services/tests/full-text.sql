do $$ begin assert to_tsvector('english', 'the tests were running') @@ to_tsquery('run & test'); end $$;
