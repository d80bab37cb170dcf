"""gunicorn behind tidegate: gunicorn --config gunicorn.conf.py app:app"""

# Nobody else can get here. `tidegate exec` passes --bind, which wins over this.
bind = "127.0.0.1:8000"
# One request for each worker: the simplest queue there is. For threads see docs/operations.md.
workers = 4
# Longer than any request should take, shorter than tidegate's backend.response_timeout.
timeout = 30
# Requests that a drain of tidegate has left over.
graceful_timeout = 30
# Heartbeats of workers, in memory: a disk that stalls would look like a worker that hangs.
worker_tmp_dir = "/dev/shm"
# tidegate is the only peer, and sets these itself.
forwarded_allow_ips = "127.0.0.1"
