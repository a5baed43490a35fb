"""Evaluate trained tokenizers: metrics, probes, comparisons and their report."""
