"""Wrap third-party tokenizers: find their taps and quantizer, and read codes of three levels from them."""
