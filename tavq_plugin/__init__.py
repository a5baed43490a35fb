"""tavq-plugin: a codebook that speaks language, for any existing VQ image tokenizer."""
