"""Hosts without an adapter: known by their quantizer, tapped by a dry run, or refused with what to pass."""

import pytest
import torch
from einops import rearrange
from helpers.conformance import texts
from helpers.tiny_hosts import Autoencoder, Case
from torch import nn

import tavq_plugin as tavq
from tavq_plugin.types import Quantized


class Quantizer(nn.Module):
    """A plain VQ whose class no adapter knows."""

    def __init__(self, k=16, c=8):
        super().__init__()
        self.embedding = nn.Embedding(k, c)

    def forward(self, z):
        table = self.embedding.weight
        indices = torch.cdist(z.flatten(2).mT, table[None]).argmin(-1).view(len(z), *z.shape[2:])
        q = rearrange(table[indices], "b h w c -> b c h w")
        return z + (q - z).detach(), indices, ((q - z.detach()) ** 2).mean()


def parse(z, output):
    return Quantized(*output)


UNKNOWN = dict(quantizer="vq", parse=parse)


@pytest.fixture
def host():
    torch.manual_seed(0)
    return Autoencoder(Quantizer())


def test_a_dry_run_finds_the_last_map_of_each_resolution(host):
    """Not `stem.0`, which an in-place ReLU changes, nor `aside`, on which the quantizer does not depend."""
    assert tavq.wrap(host, **UNKNOWN).adapter.taps == ("stem", "first")


def test_a_known_quantizer_needs_no_settings():
    package = pytest.importorskip("vector_quantize_pytorch")
    adapter = tavq.wrap(Autoencoder(package.SimVQ(8, 16, channel_first=True))).adapter
    assert adapter.quantizer == "vq" and adapter.taps == ("stem", "first")


def test_a_subclass_of_a_known_quantizer_is_known():
    package = pytest.importorskip("vector_quantize_pytorch")

    class Mine(package.VectorQuantize):
        pass

    assert tavq.wrap(Autoencoder(Mine(dim=8, codebook_size=16), tokens=True)).adapter.quantizer == "vq"


def test_a_known_host_may_hold_another_known_quantizer():
    package = pytest.importorskip("vector_quantize_pytorch")
    pytest.importorskip("taming")
    from helpers.tiny_hosts import taming

    case = taming("vq")
    case.model.quantize = package.SimVQ(8, 16, channel_first=True)
    codes = tavq.wrap(case.model).encode(case.images)
    assert [level.indices.shape[1] for level in codes.levels] == [32, 16, 8]


@pytest.mark.parametrize("path", ["modules.Model", "models.vqvae.VQVAE", "vqvae.VQVAE"])
def test_a_users_class_with_the_path_of_a_known_host_is_not_claimed(host, path):
    """Some codebases have top-level modules with names that anyone may use."""
    module, name = path.rsplit(".", 1)
    host.__class__ = type(name, (Autoencoder,), {"__module__": module})
    assert tavq.wrap(host, **UNKNOWN).adapter.taps == ("stem", "first")


@pytest.mark.parametrize("path", ["quantise.VectorQuantiser", "codebook.Codebook", "vqvae.Quantize"])
def test_a_users_class_with_the_path_of_a_known_quantizer_is_not_read(host, path):
    module, name = path.rsplit(".", 1)
    host.vq.__class__ = type(name, (Quantizer,), {"__module__": module})
    with pytest.raises(ValueError, match="no adapter reads the quantizer at 'vq'"):
        tavq.wrap(host, quantizer="vq")


def test_of_two_known_quantizers_one_must_be_named():
    package = pytest.importorskip("vector_quantize_pytorch")
    host = Autoencoder(package.SimVQ(8, 16, channel_first=True))
    host.other = package.SimVQ(8, 16, channel_first=True)
    with pytest.raises(ValueError, match=r"holds 2 known quantizers \(vq, other\): .*quantizer="):
        tavq.wrap(host)
    assert tavq.wrap(host, quantizer="vq").adapter.taps == ("stem", "first")
    with pytest.raises(ValueError, match="the quantizer 'other' never ran"):
        tavq.wrap(host, quantizer="other")


def test_an_unknown_quantizers_return_value_is_never_guessed(host):
    with pytest.raises(ValueError, match=r"no adapter knows .*Autoencoder or any quantizer in it.*quantizer=.*parse="):
        tavq.wrap(host)
    with pytest.raises(ValueError, match=r"no adapter reads the quantizer at 'vq', .*Quantizer.*pass parse="):
        tavq.wrap(host, quantizer="vq")


def test_a_host_of_two_resolutions_has_its_second_tap_on_the_code_grid(host):
    host.stem, host.first, host.second = nn.Conv2d(3, 8, 4, 2, 1), nn.Identity(), nn.Conv2d(8, 16, 4, 2, 1)
    tokenizer = tavq.wrap(host, **UNKNOWN)
    assert tokenizer.adapter.taps == ("first", "second")
    assert tokenizer.sizes.grids == ((32, 32), (16, 16), (16, 16))


def test_a_host_without_feature_maps_is_refused_with_what_was_found(host):
    host.stem, host.first, host.second = nn.Identity(), nn.Identity(), nn.Conv2d(3, 8, 4, 4)
    host.to_codes = nn.Identity()
    with pytest.raises(ValueError, match=r"16×16 grid, .*a dry run found: 64×64 \(first\)\. Name two .* in taps="):
        tavq.wrap(host, **UNKNOWN)


def test_outputs_changed_in_place_are_named(host):
    class InPlace(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.relu_())

    host.stem, host.first = nn.Conv2d(3, 8, 3, padding=1), InPlace(8, 12, 4, 2, 1)
    with pytest.raises(ValueError, match=r"found: 32×32 \(first\); changed in place later, so unusable: stem\."):
        tavq.wrap(host, **UNKNOWN)


def test_a_detached_encoder_is_refused(host):
    host.to_codes.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(ValueError, match="carries no gradient back to the image"):
        tavq.wrap(host, **UNKNOWN)


def test_a_host_of_one_size_tells_it_by_refusing(host):
    """64 pixels fail; of the other usual sizes, 32 works."""
    host.first = nn.Sequential(host.first, nn.LayerNorm([12, 16, 16]))
    assert tavq.wrap(host, **UNKNOWN).sizes == ((32, 32), ((32, 32), (16, 16), (8, 8)), (16, 8))


def test_an_example_gives_an_unusual_size(host):
    host.first = nn.Sequential(host.first, nn.LayerNorm([12, 24, 24]))
    with pytest.raises(RuntimeError) as caught:
        tavq.wrap(host, **UNKNOWN)
    assert "give example=" in caught.value.__notes__[0]
    codes = tavq.wrap(host, **UNKNOWN, example=torch.zeros(1, 3, 48, 48)).encode(torch.rand(2, 3, 48, 48))
    assert [level.indices.shape[1] for level in codes.levels] == [48, 24, 12]


def test_token_features_need_their_layout(host):
    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).mT

    class Back(nn.Module):
        def forward(self, x):
            return x.mT.unflatten(2, (int(x.shape[1] ** 0.5),) * 2)

    host.stem = nn.Sequential(host.stem, Tokens(), nn.LayerNorm(8), Back())
    host.first = nn.Sequential(host.first, Tokens(), nn.LayerNorm(12), Back())
    with pytest.raises(
        ValueError, match=r"feature of level 1 is \(2, 4096, 8\), which does not fit layout 'b c h w'.*layout="
    ):
        tavq.wrap(host, **UNKNOWN, taps=["stem.2", "first.2"])
    tokenizer = tavq.wrap(host, **UNKNOWN, taps=["stem.2", "first.2"], layout="b n c")
    assert [level.indices.shape[1] for level in tokenizer.encode(torch.rand(2, 3, 32, 32)).levels] == [32, 16, 8]
    assert tavq.wrap(host, **UNKNOWN, layout="b n c").adapter.taps == ("stem.2", "first.2")


def test_tokens_that_make_no_square_are_refused():
    package = pytest.importorskip("vector_quantize_pytorch")
    host = Autoencoder(package.VectorQuantize(dim=8, codebook_size=16), tokens=True)
    with pytest.raises(ValueError, match="n tokens make no square grid"):
        tavq.wrap(host).encode(torch.rand(2, 3, 32, 64))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("VectorQuantize", dict(dim=8, codebook_size=16, heads=2), "heads > 1"),
        ("VectorQuantize", dict(dim=8, codebook_size=16, affine_param=True), "affine_param"),
        ("ResidualVQ", dict(dim=8, codebook_size=16, num_quantizers=2, implicit_neural_codebook=True), "implicit"),
        ("FSQ", dict(levels=[3, 3], num_codebooks=4), "num_codebooks > 1"),
        ("LFQ", dict(codebook_size=16, num_codebooks=2), "num_codebooks > 1"),
    ],
)
def test_quantizers_without_one_table_are_refused(name, settings, message):
    package = pytest.importorskip("vector_quantize_pytorch")
    tokens = name in ("VectorQuantize", "ResidualVQ")
    with pytest.raises(ValueError, match=f"{message}.* has no single k c table: pass parse="):
        tavq.wrap(Autoencoder(getattr(package, name)(**settings), tokens=tokens))


def test_a_host_tapped_by_a_dry_run_trains(host):
    case = Case(host)
    optimizer = torch.optim.Adam(host.parameters(), lr=1e-3)
    align = tavq.attach(host, optimizer, text_dim=6, **UNKNOWN)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        output, own = host(case.images)
        extra = align(texts())
        ((output - case.images).abs().mean() + own + extra).backward()
        optimizer.step()
        losses.append(extra.item())
    assert losses[-1] < 0.9 * losses[0]
    tavq.detach(host)
