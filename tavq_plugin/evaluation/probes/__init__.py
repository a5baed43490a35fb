"""Probes: what is fitted on the training codes of every run, to read the text from its held-out codes."""

from tavq_plugin.moved import old_names

__getattr__ = old_names(__name__)  # names that moved from here to `ridge`
