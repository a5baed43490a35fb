"""The `tavq` command: each file parses, calls and prints; `app` holds the list of commands."""
