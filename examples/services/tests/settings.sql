alter system set work_mem = '1MB';
select pg_reload_conf();
do $$ begin assert current_setting('server_version_num')::int >= 90000; end $$;
