"""One file per host codebase; `tavq_plugin.hosts.registry` names them in tables of strings."""
