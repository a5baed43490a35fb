"""The nearest code does not depend on how many distances are computed at a time."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


class _BytesAllocated(TorchDispatchMode):
    """The bytes of every storage that an operation makes, all together: also of those that were freed since."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, list((kwargs or {}).values())))}
        for tensor in _tensors([made]):
            if tensor.untyped_storage().data_ptr() not in given:
                self.total += tensor.untyped_storage().nbytes()
        return made


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


@pytest.mark.parametrize(("size", "side"), [(16_384, 32), (262_144, 8)])
def test_all_distances_share_one_buffer(size, side):
    # Blocks that are allocated one by one were all held at once by a CPU's heap: 2.1 GB where 4 MB was meant
    latent, codebook = torch.randn(2, 4, side, side), torch.randn(size, 4)
    with _BytesAllocated() as allocated:
        nearest(latent, codebook)
    distances = 4 * rows_at_a_time(size, on_cpu=True) * size
    others = 4 * (latent.numel() + codebook.numel() + size) + 2 * 8 * latent.numel()
    assert distances < allocated.total <= distances + others
    assert distances <= 2**28 and distances < 4 * size * len(latent) * side**2
