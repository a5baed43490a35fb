"""Share of a taming VQGAN f16 256 px training step that transport takes: python benchmarks/step_share.py --json OUT.

A step is the host's forward and backward (taming's f16 configuration, b images), a PatchGAN pass on its output, and
Adam. Transport is `solve`, forward and backward, on three levels of that size: codes of width 256 at 64², 32² and 16²
against 64, 32 and 12 units, through a projection to 384. The two are timed in turns in one process; results are
medians. On a CPU, seconds are the process's CPU time.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from common.machine import machine, versions
from common.result_files import save_results
from common.timing import timed
from common.transport_problems import transport_problem
from tavq_plugin.adapters.taming import VQGAN
from torch import nn

from tavq_plugin.ot import solve

F16 = {
    "double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0,
}  # fmt: skip
LEVELS = ((4096, 64), (1024, 32), (256, 12))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--batch", type=int, default=1, help="images per step (a GPU holds 32)")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    host = VQGAN(F16, n_embed=1024, embed_dim=256).to(device)
    from taming.modules.discriminator.model import NLayerDiscriminator

    critic = NLayerDiscriminator(input_nc=3, n_layers=3).to(device)
    optimizer = torch.optim.Adam([*host.parameters(), *critic.parameters()], lr=1e-5)
    images = torch.rand(arguments.batch, 3, 256, 256, device=device) * 2 - 1
    problems = [transport_problem("clustered", arguments.batch, n, m, 384, seed=n) for n, m in LEVELS]
    leaves = [[t.to(device).requires_grad_() for t in problem] for problem in problems]

    def step() -> None:
        reconstruction, loss = host(images)
        (loss + (reconstruction - images).abs().mean() - critic(reconstruction).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    def transport() -> None:
        for codes, text, project in leaves:
            solve(codes, text, project=project).value.mean().backward()

    rounds = [(timed(step, device), timed(transport, device)) for _ in range(arguments.rounds + 1)][1:]
    shares = [mine / whole for whole, mine in rounds]
    result = {
        "machine": machine(), "threads": 1, "device": device, "versions": versions(), "batch": arguments.batch,
        "parameters": sum(p.numel() for p in nn.ModuleList([host, critic]).parameters()),
        "step_seconds": statistics.median(whole for whole, _ in rounds),
        "transport_seconds": statistics.median(mine for _, mine in rounds),
        "share": statistics.median(shares), "share_range": [min(shares), max(shares)], "protocol": __doc__,
    }  # fmt: skip
    save_results(arguments.json, result)
    print(json.dumps({key: result[key] for key in ("step_seconds", "transport_seconds", "share", "share_range")}))


if __name__ == "__main__":
    main()
