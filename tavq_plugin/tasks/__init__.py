"""What codes are good for: generation, grounding and reasoning on the codes of any run. One file per task."""
