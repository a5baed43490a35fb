"""aMUSEd's tokenizer, diffusers' VQModel(lookup_from_codebook=True): its own decode takes indices."""

import torch
from helpers.tiny_hosts import tiny

import tavq_plugin as tavq


def test_the_picture_is_that_of_the_hosts_own_decode_from_indices():
    host = tiny("diffusers-amused").eval()
    images = torch.rand(2, 3, 32, 32)
    tokenizer = tavq.wrap(host)
    codes = tokenizer.encode(images)
    b, c, h, w = codes.final.quantized.shape
    own = host.decode(codes.final.indices, force_not_quantize=True, shape=(b, h, w, c)).sample
    torch.testing.assert_close(tokenizer.decode(codes), own)
