do $$ begin assert array_length(array[1, 2, 3] || 4, 1) = 4; assert 2 = any(array[1, 2]); end $$;
