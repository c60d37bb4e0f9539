"""Benchmarks: data sets, small networks, plans, cells, rows and tables."""
