"""Probes: what is fitted on the training codes of every run, to read the text from its held-out codes."""
