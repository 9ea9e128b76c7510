"""Speed and memory against a plain textbook version of the same mathematics."""
