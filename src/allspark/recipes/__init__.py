"""One complete configuration a data set."""
