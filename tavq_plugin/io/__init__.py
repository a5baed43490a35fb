"""Files that are whole or absent, state without pickle, and old checkpoints read without running them."""
