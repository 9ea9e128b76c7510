"""Many runs as one comparison: plan them, run what is missing, put the results in one table."""
