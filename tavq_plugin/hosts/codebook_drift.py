"""Check, once in many training steps, that the host's vectors are still rows of the codebook that the levels share."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from tavq_plugin.distributed import gather_sharded
from tavq_plugin.hosts.hierarchy import Hierarchy
from tavq_plugin.hosts.hooks import Capture
from tavq_plugin.hosts.protocols import Adapter
from tavq_plugin.hosts.verify_reading import MOVED, look_up, within_tolerance
from tavq_plugin.types import Quantized

CHECKED_EVERY = 1000  # steps
EXACT = 1e-2  # largest difference as a share of the largest entry, where the forward does not move the codebook


class CodebookDrift:
    """Whether a host began to look up another table than its codebook: a copy, normalised or not refreshed.

    The answer stays on the device until `warn` reads it.

    Args:
        every: Steps from one check to the next.
        tolerance: Largest difference of vectors and rows, as a share of the vectors' largest entry.
    """

    def __init__(self, *, every: int = CHECKED_EVERY, tolerance: float = EXACT) -> None:
        self.every, self.tolerance = every, tolerance
        self.found: Tensor | None = None  # scalar bool on the device
        self.step = 0  # of the latest check
        self.warned = False

    def is_due(self, step: int) -> bool:
        """Whether this step, counted from 1, is checked."""
        return not self.warned and step % self.every == 0

    def check(self, adapter: Adapter, z_in: object, final: Quantized, table: Tensor | None, step: int) -> None:
        """Compare one forward's vectors with the codebook's rows; nothing waits for the device.

        Nothing is compared where vectors are sums of several codes, or differ from them in training (Gumbel).
        """
        reader = getattr(adapter, "quantizer_adapter", adapter)
        if table is None or final.looked_up is not None or getattr(reader, "sums_lookups", False):
            return
        if not adapter.straight_through:
            return
        moved = not table.requires_grad or getattr(reader, "moves_codebook", False)
        with torch.no_grad():
            rows = look_up(final.indices, table)
            latent = z_in if final.latent is None else final.latent
            same = within_tolerance(rows, final, latent, max(self.tolerance, MOVED) if moved else self.tolerance)
        self.found, self.step = ~same if self.found is None else self.found | ~same, step

    def check_call(self, adapter: Adapter, hierarchy: Hierarchy, call: Capture, step: int) -> None:
        """Compare the vectors of one call of the quantizer with the codebook, if the levels look that up."""
        if hierarchy.codebook == "shared" or hierarchy.grad_to != "encoder":
            final = adapter.parse(call.z_in, call.output)
            self.check(adapter, call.z_in, final, gather_sharded(adapter.codebook()), step)

    def warn(self) -> None:
        """Read the answer, which makes the device wait; warn, once for this object, if the tables drifted apart."""
        found, self.found = self.found, None
        if found is None or self.warned or not bool(found):
            return
        self.warned = True
        warnings.warn(
            f"by step {self.step} the host's quantized vectors are no rows of its codebook any more: it looks up "
            "another table (a normalised copy, an average, a copy that is not refreshed), so the added levels read "
            'stale codes. Fix: give codebook="own", codebook_size=, grad_to="encoder", or write an adapter whose '
            "codebook() returns the table that the host looks up",
            stacklevel=3,
        )
