"""VQCT's network: two graph convolutions from words to codes, and its fit to latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tavq_plugin.methods.word_graph import WordGraph


def fit_transfer(
    transfer: Transfer,
    offsets: Tensor,
    latents: Tensor,
    draw: torch.Generator,
    *,
    parts: Sequence[tuple[slice, slice]],
    steps: int = 200,
) -> None:
    """Move the network's codes onto latents n c, each of which should have a near code and each code a near latent.

    Adam on the mean squared distance of latents to their nearest code plus that of codes to their nearest latent, from
    the network's weights scaled to the latents; over `parts`, codes and the channels that they are for. The codes of
    repeated words are then put on latents drawn at random.
    """
    weights = list(transfer.parameters())
    latents = latents.detach().float()
    mean, spread = latents.mean(0), (latents - latents.mean(0)).square().mean().sqrt()
    with torch.no_grad():
        codes = transfer(torch.zeros_like(offsets)).view(transfer.shape)
        transfer.second.weight.mul_(spread / (codes - codes.mean(0)).square().mean().sqrt().clamp(min=1e-8))
        transfer.bias.add_(mean - transfer(torch.zeros_like(offsets)).view(transfer.shape).mean(0))
    first = transfer.copies == 0
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
            some = latents[torch.randint(len(latents), (1024,), generator=draw).to(latents.device)]
            made = transfer(torch.zeros_like(offsets)).view(transfer.shape)
            loss = made.new_zeros(())
            for codes, channels in parts:
                own, seen = made[codes][first[codes]][:, channels], some[:, channels]
                apart = seen.square().sum(1)[:, None] + own.square().sum(1) - 2 * seen @ own.T
                loss = loss + (apart.amin(1).mean() + apart.amin(0).mean()) / spread.square()
            gradients = torch.autograd.grad(loss, weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
    for weight in weights:
        weight.grad = None
    with torch.no_grad():
        chosen = latents[torch.randperm(len(latents), generator=draw)[: transfer.shape[0]].to(latents.device)]
        offsets.copy_((chosen - transfer(torch.zeros_like(offsets)).view(transfer.shape)).view_as(offsets))


class Transfer(nn.Module):
    """From words to codes by two graph convolutions (Kipf & Welling 2017, eq. 8); u d -> k c.

    Â = D^-½ (A + 1) D^-½, where A counts how often two words stand side by side; code i belongs to word `rows[i]`. The
    input holds offsets that are added to the repeated codes of a word; the entry for its first code is not read.
    """

    source: Tensor  # e, the word that an edge of the graph starts from
    target: Tensor  # e, the word that it leads to
    weight: Tensor  # e
    own: Tensor  # u, weight of each word's edge to itself
    rows: Tensor  # k, the word of each code
    copies: Tensor  # k, 1 for the repeated codes of a word, 0 for its first
    seen: Tensor  # u d, Â times the word embeddings

    def __init__(self, words: Tensor, graph: WordGraph, shape: torch.Size, hidden: int) -> None:
        super().__init__()
        self.shape = shape
        rows = words_of_codes(len(words), shape[0])
        first = torch.cat([torch.ones(1, dtype=torch.bool), rows[1:] != rows[:-1]])
        edges = torch.tensor([[a, n] for a, n in graph.edges], dtype=torch.long).view(-1, 2)
        weight = torch.tensor([float(count) for count in graph.edges.values()])
        source, target = torch.cat([edges, edges.flip(1)]).T
        weight = weight.repeat(2)
        degree = torch.ones(len(words)).index_add(0, target, weight)
        buffers = dict(source=source, target=target, weight=weight * (degree[source] * degree[target]) ** -0.5)
        buffers |= dict(own=1 / degree, rows=rows, copies=(~first).float())
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        # scaled so that coordinates are about 1, as a network's inputs should be
        seen = self.mixed(F.normalize(words, dim=1) * words.shape[1] ** 0.5)
        self.register_buffer("seen", seen, persistent=False)
        self.first, self.second = nn.Linear(words.shape[1], hidden), nn.Linear(hidden, shape[1], bias=False)
        self.bias = nn.Parameter(torch.zeros(shape[1]))
        nn.init.zeros_(self.first.bias)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)

    def mixed(self, values: Tensor) -> Tensor:
        """Â times the values; u c -> u c."""
        spread = values * self.own[:, None].to(values.dtype)
        return spread.index_add(0, self.target, self.weight[:, None].to(values.dtype) * values[self.source])

    def forward(self, offsets: Tensor) -> Tensor:
        """The codebook, in its parameter's shape."""
        with torch.autocast(offsets.device.type, enabled=False):
            codes = self.mixed(self.second(F.relu(self.first(self.seen)))) + self.bias
            return (codes[self.rows] + self.copies[:, None] * offsets.view(self.shape)).view_as(offsets)

    def right_inverse(self, codebook: Tensor) -> Tensor:
        """Start the offsets from the host's own codebook, so that the codes of a repeated word differ."""
        return (self.copies[:, None] * codebook.view(self.shape)).view_as(codebook)


def words_of_codes(words: int, codes: int) -> Tensor:
    """The word of each code: words repeat in turn, and the codes of one word lie together; -> k.

    >>> words_of_codes(3, 7).tolist()
    [0, 0, 0, 1, 1, 2, 2]
    """
    return (torch.arange(codes) % words).sort().values
