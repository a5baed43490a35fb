"""One host codebase a file; reached only through `tavq_plugin.hosts.registry`."""
