"""One file per host codebase; reached through the table of strings in `tavq_plugin.hosts.registry`."""
