"""The tables and the page of `tavq task`."""
