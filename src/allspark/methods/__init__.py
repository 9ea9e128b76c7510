"""One file a training method."""
