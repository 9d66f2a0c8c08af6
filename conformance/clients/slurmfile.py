"""What slurm-sdk is told of a cluster of Testyard: an address, a user and a password."""

SLURMFILE = """
[default.cluster]
backend = "ssh"
job_base_dir = "/home/{user}/slurm_jobs"
[default.cluster.backend_config]
hostname = "{host}"
port = {port}
username = "{user}"
password = "{password}"
look_for_keys = false
allow_agent = false
banner_timeout = 30
host_key_policy = "auto"
[default.packaging]
type = "{packaging}"
python_executable = "/usr/bin/python3"
"""
