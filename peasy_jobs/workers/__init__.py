"""Run jobs in threads or processes. Knows neither runners nor pages, and writes no status."""
