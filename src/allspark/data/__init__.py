"""Data sets on disk, and how training sees them."""
