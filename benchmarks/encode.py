"""Images per second of `encode_batch`, beside the bare encoder: python benchmarks/encode.py [--json OUT].

Both sides run in one process, in turns, on the same images. The bare encoder is the host through its quantizer, without
hooks and without the added levels. Prints the median of the ratios of neighbouring turns, and their quartiles.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from common.timing import timed

import tavq_plugin as tavq
from tavq_plugin.io.atomic import save_json
from tavq_plugin.pixels import to_float
from tavq_plugin.training.build_host import small_vqgan
from tavq_plugin.use.encode_batch import encode_batch


def main(resolution: int = 64, batch: int = 32, turns: int = 15) -> dict[str, object]:
    """Ratios of speed, by levels: above .9 is the goal."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    tokenizer = tavq.wrap(small_vqgan(resolution), log_summary=False).to(device).eval()
    images = torch.randint(256, (batch, 3, resolution, resolution), dtype=torch.uint8)

    @torch.no_grad()
    def bare() -> None:
        tokenizer.adapter.encode(to_float(images.to(device)))

    found: dict[str, object] = {"device": device, "resolution": resolution, "batch": batch, "turns": turns}
    for levels in ("final", "all"):
        ratios = []
        for turn in range(turns + 2):
            alone = timed(bare, device)
            ours = timed(lambda levels=levels: encode_batch(tokenizer, images, levels=levels), device)
            if turn >= 2:  # the first two warm up
                ratios.append(alone / ours)
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[levels] = {"speed_of_bare": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    content = main(given.resolution, given.batch, given.turns)
    print(content)
    if given.json is not None:
        save_json(given.json, content)
