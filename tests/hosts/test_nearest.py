"""The nearest code does not depend on how many distances are computed at a time."""

import pytest
import torch

from tavq_plugin.hosts.quantization import nearest, rows_at_a_time


@pytest.mark.parametrize("size", [16, 5_000, 70_000])
def test_every_block_size_finds_the_same_codes(size):
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 8, 6, 7, generator=generator)
    codebook = torch.randn(size, 8, generator=generator)
    found = nearest(latent, codebook)
    exact = torch.cdist(latent.double().permute(0, 2, 3, 1).reshape(-1, 8), codebook.double()).argmin(1)
    assert torch.equal(found.reshape(-1), exact)
    assert all(torch.equal(found, nearest(latent, codebook, chunk=chunk)) for chunk in (1, 64 * size, 10**9))


def test_a_large_codebook_is_looked_up_for_many_rows_at_a_time():
    assert rows_at_a_time(262_144, on_cpu=True) == 64 and rows_at_a_time(1024, on_cpu=True) == 256
    assert rows_at_a_time(262_144, on_cpu=False) == 64 and rows_at_a_time(10**8, on_cpu=False) == 1
