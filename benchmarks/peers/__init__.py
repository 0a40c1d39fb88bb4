"""homojl beside its peers on the same problems in one run; `benchmarks/side_by_side.py` is the script.

Imports within are relative: scripts beside this folder import it as `peers`, tests as `benchmarks.peers`.
"""
