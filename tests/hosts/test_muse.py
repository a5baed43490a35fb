"""muse-maskgit-pytorch's VQGanVAE: what differs from the conformance suite, which runs on it too."""

import torch
from helpers.tiny_hosts import tiny

import tavq_plugin as tavq


def test_indices_and_pictures_are_those_of_the_hosts_own_methods():
    host = tiny("muse").eval()
    images = torch.rand(2, 3, 32, 32)
    tokenizer = tavq.wrap(host)
    codes = tokenizer.encode(images)
    _, indices, _ = host.encode(images)
    assert torch.equal(codes.final.indices, indices)
    torch.testing.assert_close(tokenizer.decode(codes), host.decode_from_ids(indices))
