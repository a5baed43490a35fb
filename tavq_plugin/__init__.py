"""tavq-plugin: a codebook that speaks language, for any existing VQ image tokenizer (TA-VQ, arXiv 2503.01261)."""
