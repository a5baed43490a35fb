"""pythae's VQVAE: what differs from the conformance suite, which runs on it too."""

import pytest
import torch
from helpers.tiny_hosts import tiny

import tavq_plugin as tavq


@pytest.mark.parametrize("name", ["pythae", "pythae-ema"])
def test_the_host_takes_its_own_dict_and_gives_its_own_indices(name):
    host = tiny(name).eval()
    images = torch.rand(2, 3, 32, 32)
    output, codes = tavq.wrap(host)({"data": images})
    assert torch.equal(codes.final.indices, output.quantized_indices.squeeze(1))
    torch.testing.assert_close(codes.final.quantized, output.z)


def test_an_encoder_without_a_grid_is_refused():
    pytest.importorskip("pythae")
    from pythae.models import VQVAE, VQVAEConfig

    host = VQVAE(VQVAEConfig(input_dim=(3, 32, 32), latent_dim=8, num_embeddings=32))  # its default MLP
    with pytest.raises(ValueError, match="one vector per image, and a map .* convolutional encoder="):
        tavq.wrap(host)
