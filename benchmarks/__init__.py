"""Compare peasy_jobs with other queues and with plain SQL. See `benchmarks/__main__.py`."""
