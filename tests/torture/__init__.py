"""The torture run: random faults, random jobs, and afterwards a check of every single job.

`python -m tests.torture --database sqlite --seconds 600 --seed 1`, or `make torture`.
"""
