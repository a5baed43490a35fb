"""Semi-discrete optimal transport by itself: `solve`. This package imports nothing else of tavq_plugin."""

from tavq_plugin.ot.solve import Transport, solve

__all__ = ["Transport", "solve"]
