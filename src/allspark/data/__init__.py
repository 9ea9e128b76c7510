"""Images and masks: from a data set on disk to batches."""
