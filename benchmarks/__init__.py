"""How fast peasy_jobs is beside its peers and beside the bare database: `make bench`, see `benchmarks/__main__.py`."""
