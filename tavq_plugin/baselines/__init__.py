"""Methods to train a VQ tokenizer by, one a file; looked up by name, imported when asked for."""

METHODS = {"vqgan": "tavq_plugin.baselines.method:Method"}
