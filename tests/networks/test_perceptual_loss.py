"""Perceptual distances with local weights: hashes, known answers, gradients."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from tavq_plugin.networks.perceptual_loss import FeatureDistance, PerceptualRecipe, build_perceptual

SQUEEZENET = Path(__file__).parents[3] / "shared" / "weights" / "squeezenet1_0_imagenet.pth"
LAYERS = ("features.3", "features.7", "features.12")


def saved(module, path):
    torch.save(module.state_dict(), path)
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


def images(seed=0):
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def assert_is_a_distance(distance):
    one, other = images().requires_grad_(), images(1)
    assert distance(other, other).item() == pytest.approx(0, abs=1e-6)
    near, far = distance(other + 0.05 * one, other), distance(one, other)
    assert 0 < near < far and far.ndim == 0
    far.backward()
    assert one.grad.isfinite().all() and one.grad.abs().sum() > 0
    assert all(not p.requires_grad for p in distance.parameters()) and not distance.training


def test_feature_distance_equals_its_formula():
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 5, 1, bias=False))
    distance = FeatureDistance(network, ("0", "1"))
    one, other = images(), images(1)
    expected = 0.0
    for depth in (1, 2):
        a, b = (network[:depth](((x + 1) / 2 - distance.mean) / distance.std) for x in (one, other))
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        expected += (a - b).pow(2).sum(1).mean() / 2
    torch.testing.assert_close(distance(one, other), expected)


def test_a_bad_frozen_network_is_refused(tmp_path):
    path, digest = saved(nn.Conv2d(3, 4, 3), tmp_path / "net.pth")
    recipe = PerceptualRecipe("frozen", path=path, sha256=digest, network="torchvision.models.nothing", layers=("a",))
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match="torchvision.models has no nothing"):
        build_perceptual(recipe)
    with pytest.raises(ValueError, match="outside the allowed packages"):
        build_perceptual(PerceptualRecipe("frozen", path=path, network="os.path.join", layers=("a",)))
    with pytest.raises(ValueError, match="needs perceptual.network"):
        build_perceptual(PerceptualRecipe("frozen", path=path))


def test_squeezenet_gives_a_distance():
    pytest.importorskip("torchvision")
    if not SQUEEZENET.exists():
        pytest.skip(f"no {SQUEEZENET}")
    recipe = PerceptualRecipe("frozen", path=str(SQUEEZENET), network="torchvision.models.squeezenet1_0", layers=LAYERS)
    assert_is_a_distance(build_perceptual(recipe))


@pytest.mark.parametrize("name", ["alex", "squeeze"])
def test_lpips_takes_torchvisions_own_file(tmp_path, name):
    models = pytest.importorskip("torchvision").models
    pytest.importorskip("torchmetrics")
    builder = {"alex": "alexnet", "squeeze": "squeezenet1_1"}[name]
    with torch.device("meta"):
        features = getattr(models, builder)().features.to_empty(device="cpu")
    for parameter in features.parameters():
        nn.init.normal_(parameter, 0, 0.05)
    named = nn.ModuleDict({"features": features})  # as in the whole network's file
    path, digest = saved(named, tmp_path / "net.pth")
    stream = torch.get_rng_state()
    distance = build_perceptual(PerceptualRecipe("lpips", path=path, sha256=digest[:8], network=name))
    assert torch.equal(stream, torch.get_rng_state())
    assert_is_a_distance(distance)
    ours = list(distance.module.net.parameters())
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(ours, features.parameters(), strict=True))
    torch.save({}, path)
    with pytest.raises(ValueError, match=rf"does not hold features\.0\.weight of {name}: give torchvision's {builder}"):
        build_perceptual(PerceptualRecipe("lpips", path=path, network=name))


def test_missing_or_wrong_weights_are_refused(tmp_path):
    pytest.importorskip("torchmetrics")
    with pytest.raises(FileNotFoundError, match=r"perceptual.path is ''.*vgg16-397923af.pth, --set perceptual.path="):
        build_perceptual(PerceptualRecipe("lpips"))
    path, _ = saved(nn.Conv2d(3, 4, 3), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"net.pth has sha256 [0-9a-f]{64}, and 00000000 was expected: get the file"):
        build_perceptual(PerceptualRecipe("lpips", path=path, sha256="00000000"))
    with pytest.raises(ValueError, match="LPIPS has the backbones vgg, alex, squeeze"):
        build_perceptual(PerceptualRecipe("lpips", path=path, network="resnet"))


def test_no_perceptual_loss_is_none():
    assert build_perceptual(PerceptualRecipe()) is None
    assert build_perceptual(PerceptualRecipe("lpips", weight=0.0)) is None
