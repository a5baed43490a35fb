"""What `tavq evaluate` measures: tokenizers that were trained elsewhere, and finished runs."""
