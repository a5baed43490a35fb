"""Floors: features that nobody trained, measured as codes are."""
