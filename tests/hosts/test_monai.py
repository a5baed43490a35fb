"""MONAI's VQVAE: what differs from the conformance suite, which runs on it too."""

import pytest
import torch
from helpers.tiny_hosts import tiny

import tavq_plugin as tavq


def test_a_volume_is_refused_with_what_to_do():
    pytest.importorskip("monai")
    from monai.networks.nets.vqvae import VQVAE

    down, up = ((2, 4, 1, 1),) * 2, ((2, 4, 1, 1, 0),) * 2
    host = VQVAE(3, 1, 1, (8, 8), 1, (8, 8), down, up, num_embeddings=8, embedding_dim=4)
    with pytest.raises(ValueError, match=r"spatial_dims=3, and maps .* volumes are not supported\. Fix: .* slices"):
        tavq.wrap(host)


def test_indices_and_pictures_are_those_of_the_hosts_own_methods():
    host = tiny("monai").eval()
    images = torch.rand(2, 3, 32, 32)
    tokenizer = tavq.wrap(host)
    codes = tokenizer.encode(images)
    assert torch.equal(codes.final.indices, host.index_quantize(images))
    torch.testing.assert_close(tokenizer.decode(codes), host.decode_samples(codes.final.indices))
