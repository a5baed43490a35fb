"""Atomic writes, marks of ownership, state saved without pickle, and safe reading of old checkpoints."""
