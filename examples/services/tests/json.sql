do $$ begin assert '{"a": {"b": 3}}'::jsonb #>> '{a,b}' = '3'; end $$;
