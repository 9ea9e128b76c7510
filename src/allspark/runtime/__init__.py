"""What a process needs of its machine and of its fellow processes."""
