"""Files that are whole or absent, saved state without pickle, and safe reading of old checkpoints."""
