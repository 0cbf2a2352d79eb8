"""Recordings: index, bank, labels, batches, and the embedded data set."""
