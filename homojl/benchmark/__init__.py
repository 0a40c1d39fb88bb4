"""Benchmarks: this solver and its peers on the same problems in the same run, and the bars that it is held to."""
