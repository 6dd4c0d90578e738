"""The torture run: many faults at random, many jobs at random, and afterwards a look at every single one of them.

`python -m tests.torture --database sqlite --seconds 600 --seed 1`, or `make torture`.
"""
