"""What trained tokenizers are worth: metrics, probes, comparisons and their report."""
