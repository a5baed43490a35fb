"""Semi-discrete optimal transport by itself: `solve`. This package imports nothing else of the plug-in."""

from tavq_plugin.ot.solve import Transport, solve

__all__ = ["Transport", "solve"]
