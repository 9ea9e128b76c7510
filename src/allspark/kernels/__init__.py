"""Exact, fast pieces of arithmetic that know nothing of the paper."""
