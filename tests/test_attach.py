"""wrap, attach and detach on a small host of the test's own: bad input, stale captures, gradients, own codebooks."""

import copy

import pytest
import torch
from einops import rearrange
from helpers.conformance import IMAGES, texts
from torch import nn

import tavq_plugin as tavq
from tavq_plugin.losses.alignment_settings import BALANCE, WEIGHT
from tavq_plugin.types import Quantized


class Quantizer(nn.Module):
    """A plain VQ whose return value no adapter knows."""

    def __init__(self, k=16, c=4):
        super().__init__()
        self.embedding = nn.Embedding(k, c)

    def forward(self, z):
        table = self.embedding.weight
        indices = torch.cdist(z.flatten(2).mT, table[None]).argmin(-1).view(len(z), *z.shape[2:])
        q = rearrange(table[indices], "b h w c -> b c h w")
        return {"q": z + (q - z).detach(), "ids": indices, "loss": ((q - z.detach()) ** 2).mean()}


class Host(nn.Module):
    """Three strided convolutions, a quantizer, a decoder; `inplace` spoils the first tap."""

    def __init__(self, inplace=False):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 4, 2, 1)
        self.act = nn.ReLU(inplace=inplace)
        self.b = nn.Conv2d(8, 8, 4, 2, 1)
        self.unused = nn.Conv2d(8, 8, 1)
        self.c = nn.Conv2d(8, 4, 4, 2, 1)
        self.vq = Quantizer()
        self.up = nn.Sequential(nn.Upsample(scale_factor=8), nn.Conv2d(4, 3, 3, padding=1))

    def forward(self, x):
        out = self.vq(self.c(self.b(self.act(self.a(x)))))
        return self.decode(out["q"]), out["loss"]

    def decode(self, q):
        return self.up(q)


def parse(z, out):
    return Quantized(out["q"], out["ids"], out["loss"])


DESCRIPTION = dict(taps=["a", "b"], quantizer="vq", parse=parse)


@pytest.fixture
def host():
    torch.manual_seed(0)
    return Host()


def attached(host, **settings):
    optimizer = torch.optim.Adam(host.parameters(), lr=1e-3)
    return optimizer, tavq.attach(host, optimizer, text_dim=6, **DESCRIPTION, **settings)


def test_a_described_host_wraps(host):
    output, codes = tavq.wrap(host, **DESCRIPTION)(IMAGES)
    assert torch.equal(output[0], host(IMAGES)[0])
    assert [level.indices.shape[1] for level in codes.levels] == [16, 8, 4]


def test_a_wrong_path_says_what_is_there(host):
    with pytest.raises(ValueError, match=r"no module 'up.conv': up holds 0, 1"):
        tavq.wrap(host, taps=["a", "up.conv"], quantizer="vq", parse=parse)
    assert not any(module._forward_hooks for module in host.modules())


def test_a_tap_that_never_fires_is_refused_at_the_door(host):
    with pytest.raises(ValueError, match="never fired in the host's forward: unused"):
        tavq.wrap(host, taps=["a", "unused"], quantizer="vq", parse=parse)


def test_a_tap_modified_in_place_is_refused_at_the_door():
    with pytest.raises(ValueError, match="'a' was modified in place"):
        tavq.wrap(Host(inplace=True), **DESCRIPTION)


def test_a_latent_whose_width_differs_from_the_codebook_is_refused(host):
    def wrong(z, out):
        return Quantized(out["q"][:, :3], out["ids"], out["loss"])

    with pytest.raises(ValueError, match="vectors have width 3 and its codebook 4"):
        tavq.wrap(host, taps=["a", "b"], quantizer="vq", parse=wrong)


def test_an_own_codebook_leaves_the_hosts_alone(host):
    tokenizer = tavq.wrap(host, **DESCRIPTION, codebook="own", codebook_size=5, grad_to="encoder")
    _, codes = tokenizer(IMAGES)
    assert codes.levels[0].indices.max() < 5
    (codes.loss + sum(level.quantized.sum() for level in codes.levels)).backward()
    assert host.vq.embedding.weight.grad is None
    assert all(table.weight.grad.norm() > 0 for table in tokenizer.hierarchy.own)


def test_the_shared_codebook_is_read_only_where_the_gradient_goes_to_the_encoder(host):
    tokenizer = tavq.wrap(host, **DESCRIPTION, grad_to="encoder")
    _, codes = tokenizer(IMAGES)
    codes.loss.backward()
    assert host.vq.embedding.weight.grad is None and host.a.weight.grad.norm() > 0


def test_attach_returns_one_scalar_and_names_its_parts(host):
    _, align = attached(host, weight=0.5, codebook_loss_weight=2.0)
    host(IMAGES)
    batch = texts()
    total = align(batch)
    assert total == align.last["alignment"] + 2.0 * align.last["codebook_loss"]
    assert align.last["codebook_loss"] == align.codes.loss
    torch.testing.assert_close(align.alignment(align.codes, batch), total - 2.0 * align.codes.loss)
    tavq.detach(host)


def test_attach_trains_the_heads_and_lowers_the_loss(host):
    optimizer, align = attached(host)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        output, vq_loss = host(IMAGES)
        extra = align(texts())
        ((output - IMAGES).abs().mean() + vq_loss + extra).backward()
        optimizer.step()
        losses.append(extra.item())
    assert losses[-1] < 0.9 * losses[0]
    tavq.detach(host)


@pytest.mark.parametrize("settings", [{}, {"weight": 0.3}], ids=["balance", "sum"])
def test_the_heads_learn_at_their_own_rate_and_detach_removes_both_groups(host, settings):
    optimizer, align = attached(host, **settings)
    own = [{id(p) for p in module.parameters()} for module in (align.hierarchy, align.alignment)]
    added = optimizer.param_groups[1:]
    assert [{id(p) for p in group["params"]} for group in added] == own
    assert [group["lr"] for group in added] == [1e-3, 2e-3]
    host(IMAGES)[1].backward()
    optimizer.step()
    tavq.detach(host)
    assert len(optimizer.param_groups) == 1
    assert optimizer.state.keys() <= set(host.parameters())
    _, align = attached(host, alignment={"heads_rate": 0.5})
    assert align._optimizer.param_groups[2]["lr"] == 5e-4


def test_the_optimizers_state_loads_into_a_new_attachment(host):
    optimizer, align = attached(host)
    for _ in range(2):
        output, vq_loss = host(IMAGES)
        ((output - IMAGES).abs().mean() + vq_loss + align(texts())).backward()
        optimizer.step()
    saved, weights, heads = map(copy.deepcopy, (optimizer.state_dict(), host.state_dict(), align.state_dict()))
    again = Host()
    again.load_state_dict(weights)
    other, resumed = attached(again)
    resumed.load_state_dict(heads)
    other.load_state_dict(saved)
    for model, added, adam in ((host, align, optimizer), (again, resumed, other)):
        adam.zero_grad()
        output, vq_loss = model(IMAGES)
        ((output - IMAGES).abs().mean() + vq_loss + added(texts())).backward()
        adam.step()
    pairs = zip([*host.parameters(), *align.parameters()], [*again.parameters(), *resumed.parameters()], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_one_rate_for_all_makes_one_group_into_which_a_state_of_earlier_releases_loads(host):
    optimizer, align = attached(host, alignment={"heads_rate": 1})
    former = torch.optim.Adam(host.parameters(), lr=1e-3)
    former.add_param_group({"params": list(align.parameters()), "lr": 1e-3})
    optimizer.load_state_dict(former.state_dict())
    assert [len(group["params"]) for group in optimizer.param_groups[1:]] == [len(list(align.parameters()))]


def test_a_weight_makes_a_weighted_sum_and_the_default_is_balanced(host):
    found = {}
    for settings in ({}, {"weight": 0.3}, {"balance": None}, {"weight": 0}, {"weight": 0, "balance": 0.5}):
        _, align = attached(host, **settings)
        found[str(settings)] = (align.settings.balance, align.weight, align.recorder.live)
        tavq.detach(host)
    assert list(found.values()) == [
        (BALANCE, 0.0, True), (None, 0.3, True), (None, WEIGHT, True), (None, 0.0, False), (0.5, 0.0, True),
    ]  # fmt: skip


def test_a_capture_is_used_once(host):
    _, align = attached(host)
    with pytest.raises(RuntimeError, match="no forward of the host was recorded"):
        align(texts())
    host(IMAGES)
    align(texts())
    with pytest.raises(RuntimeError, match="no forward of the host was recorded"):
        align(texts())
    tavq.detach(host)


def test_a_capture_without_gradient_is_stale(host):
    _, align = attached(host)
    with torch.no_grad():
        host(IMAGES)
    with pytest.raises(RuntimeError, match="ran under no_grad"):
        align(texts())
    tavq.detach(host)


def test_images_without_text_give_exact_zeros(host):
    _, align = attached(host, codebook_loss_weight=0, balance=None)
    host(IMAGES)
    both_empty = {name: tavq.Units(units.embeddings, torch.zeros_like(units.mask)) for name, units in texts().items()}
    loss = align(both_empty)
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and (p.grad == 0).all() for p in align.alignment.parameters())
    assert align.last["images_without_text"].tolist() == [2, 2, 2]
    tavq.detach(host)


def test_one_image_without_text_changes_nothing_for_the_other(host):
    _, align = attached(host, codebook_loss_weight=0)
    host(IMAGES)
    with_empty = align(texts(empty=0))
    assert align.last["images_without_text"].tolist() == [1, 1, 1]
    host(IMAGES[1:])
    alone = align({name: tavq.Units(u.embeddings[1:], u.mask[1:]) for name, u in texts().items()})
    torch.testing.assert_close(with_empty, alone, rtol=1e-4, atol=1e-6)
    tavq.detach(host)


def test_a_second_attachment_is_refused(host):
    optimizer, _ = attached(host)
    with pytest.raises(ValueError, match="has an attachment already"):
        tavq.attach(host, optimizer, text_dim=6, **DESCRIPTION)
    tavq.detach(host)


def test_the_plug_ins_state_is_a_sibling(host, tmp_path):
    from safetensors.torch import load_file, save_file

    keys = list(host.state_dict())
    _, align = attached(host)
    assert list(host.state_dict()) == keys
    save_file(align.state_dict(), tmp_path / "tavq.safetensors")
    align.load_state_dict(load_file(tmp_path / "tavq.safetensors"), strict=True)
    assert not any(name.startswith(("host", "adapter")) for name in align.state_dict())
    tavq.detach(host)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (["a", "b"], "this alignment cannot encode it"),
        ({name: tavq.Units(u.embeddings[..., :5], u.mask) for name, u in texts().items()}, "give text_dim=5"),
        ({name: tavq.Units(u.embeddings[:1], u.mask[:1]) for name, u in texts().items()}, "1 texts for 2 images"),
    ],
)
def test_texts_that_do_not_fit_are_refused(host, batch, message):
    _, align = attached(host)
    host(IMAGES)
    with pytest.raises(ValueError, match=message):
        align(batch)
    tavq.detach(host)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grad_to": "decoder"}, "grad_to='decoder'"),
        ({"codebook": "mine"}, "codebook='mine'"),
        ({"layout": "h w"}, "layout='h w'"),
    ],
)
def test_unknown_settings_are_refused(host, settings, message):
    with pytest.raises(ValueError, match=message):
        tavq.wrap(host, **DESCRIPTION, **settings)
