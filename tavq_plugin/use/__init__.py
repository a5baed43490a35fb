"""What a finished run is used for; empty so far."""
