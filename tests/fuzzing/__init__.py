"""Files from outside, sound, hostile and damaged at random, and what reads them: for tests and benchmarks/fuzz.py."""
