"""One `run_peasy` process: claim jobs, hand them to workers, record what became of them."""
