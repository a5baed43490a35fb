"""The `tavq` command. Each file parses options, calls the package and prints; `app` has the list of commands."""
