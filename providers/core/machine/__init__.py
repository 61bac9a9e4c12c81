"""Jobs on a machine. Reading order: the way there: ssh, channels, channel_guard, link, shared, keys, host_keys, reach; programs: scripts, shell; the job: jobs, wrap, supervisor,
tries, following, job_end, kept_log, docker; its files: selection, patterns, pack,
upload, listing, marked, destination, download, transfer, digest, git, git_program, submodules; the machine itself: smi, check.
"""
