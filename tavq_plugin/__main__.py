"""`python -m tavq_plugin`: the same as `tavq`, for launchers that want a module."""

from tavq_plugin.cli.app import app

if __name__ == "__main__":
    app()
