"""Image metrics and code counts: closed forms, refusals, and a network against a plain loop."""

import pytest
import torch
import torch.nn.functional as F

from tavq_plugin.evaluation.metrics.codebook import code_counts, codebook_use_from_counts, sum_over_processes
from tavq_plugin.evaluation.metrics.frechet import Inception, frechet_distance, kernel_distance
from tavq_plugin.evaluation.metrics.image import ssim
from tavq_plugin.networks.lpips import Lpips
from tavq_plugin.networks.weights import MOBILENET, WeightFile


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_ssim_of_constant_images_is_its_luminance_term():
    levels = torch.tensor([100.0, 140.0])
    images = torch.full((1, 3, 16, 16), levels[0] / 127.5 - 1)
    ours = torch.full((1, 3, 16, 16), levels[1] / 127.5 - 1)
    c1 = (0.01 * 255) ** 2
    expected = (2 * levels[0] * levels[1] + c1) / (levels[0] ** 2 + levels[1] ** 2 + c1)
    assert ssim(ours, images).tolist() == pytest.approx([expected.item()], abs=1e-4)
    assert ssim(images, images).tolist() == pytest.approx([1.0])
    with pytest.raises(ValueError, match="window of 11"):
        ssim(images[..., :8, :8], images[..., :8, :8])


def test_frechet_distance_of_a_shift_is_its_square():
    features = random(60, 8)
    assert frechet_distance(features, features + 0.5) == pytest.approx(8 * 0.25, rel=1e-6)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    scaled = features - features.mean(0)  # twice the spread: tr(C + 4C − 2·2C) = tr C
    assert frechet_distance(scaled, 2 * scaled) == pytest.approx(scaled.var(0).sum().item(), rel=1e-6)


def test_kernel_distance_is_near_0_for_one_distribution_and_grows_with_a_shift():
    features = random(200, 8)
    near = kernel_distance(features[:100], features[100:])
    assert abs(near.mean) < 0.2 and 0 < near.spread < 0.5
    assert kernel_distance(features[:100], features[100:] + 2).mean > 2
    before = torch.random.get_rng_state()
    assert kernel_distance(features[:100], features[100:]) == kernel_distance(features[:100], features[100:])
    assert torch.equal(before, torch.random.get_rng_state())


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="needs two"):
        frechet_distance(random(1, 4), random(1, 4))
    with pytest.raises(ValueError, match="needs four"):
        kernel_distance(random(3, 4), random(3, 4))


@pytest.mark.parametrize("build", [Inception, Lpips, MOBILENET.read])
def test_missing_weights_are_named_with_the_fix(build, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder of weights was given.*--weights"):
        build(None)
    with pytest.raises(FileNotFoundError, match=r"\.pth is not in .*--weights FOLDER"):
        build(tmp_path)


@pytest.mark.parametrize("build", [Inception, Lpips, MOBILENET.read])
def test_weights_with_an_unknown_hash_are_refused(build, tmp_path):
    for file in ("weights-inception-2015-12-05-6726825d.pth", "vgg16-397923af.pth", "mobilenet_v2_imagenet.pth"):
        (tmp_path / file).write_bytes(b"other")
    with pytest.raises(ValueError, match="sha256.*another file or a broken download"):
        build(tmp_path)


def test_a_weights_file_with_code_in_it_is_not_run(tmp_path):
    import hashlib
    import pickle

    class Bad:
        def __reduce__(self):
            return print, ("run!",)

    torch.save({"a": Bad()}, tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    with pytest.raises(pickle.UnpicklingError):
        WeightFile("w.pth", digest, "a test").read(tmp_path)


def test_mobilenet_equals_a_plain_loop_over_its_folded_convolutions():
    pytest.importorskip("torchvision")
    from tavq_plugin.networks.frozen import mobilenet_from_state

    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    layers, width = [(3, 32, 3, 2, 1, True, "")], 32  # in, out, kernel, stride, groups, relu6, residual
    for expand, out, repeats, stride in plan:
        for i in range(repeats):
            s, same = (stride, False) if i == 0 else (1, True)
            wide = width * expand
            if expand != 1:
                layers.append((width, wide, 1, 1, 1, True, "save" if same else ""))
            layers.append((wide, wide, 3, s, wide, True, ""))
            layers.append((wide, out, 1, 1, 1, False, "add" if same else ""))
            width = out
    layers.append((320, 1280, 1, 1, 1, True, ""))
    state = {"convs.52.weight": random(10, 1280, 1, 1) / 36, "convs.52.bias": random(10)}
    for i, (a, b, k, _, groups, *_) in enumerate(layers):
        state[f"convs.{i}.weight"] = random(b, a // groups, k, k, seed=i) * (2 / (a // groups * k * k)) ** 0.5
        state[f"convs.{i}.bias"] = random(b, seed=100 + i) / 10
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    judge = mobilenet_from_state(state)
    judge.size = 64
    seen = judge.train()(images)

    x = (images.float() - 128) / 128
    for i, (_, _, k, s, groups, relu, residual) in enumerate(layers):
        if residual == "save":
            kept = x
        padded = F.pad(x, (0, 1, 0, 1) if s == 2 else (k // 2,) * 4)
        x = F.conv2d(padded, state[f"convs.{i}.weight"], state[f"convs.{i}.bias"], stride=s, groups=groups)
        x = x.clamp(0, 6) if relu else x
        x = x + kept if residual == "add" else x
    torch.testing.assert_close(seen.features, x.mean((2, 3)), rtol=1e-3, atol=1e-4)
    scores = x.mean((2, 3)) @ state["convs.52.weight"].flatten(1).T + state["convs.52.bias"]
    assert torch.equal(seen.classes, scores.argmax(1))


def test_counts_of_one_process_do_not_change():
    assert code_counts(torch.tensor([[0, 0], [2, 1]]), 4).tolist() == [2, 1, 1, 0]
    assert codebook_use_from_counts(torch.tensor([2, 2, 2, 0])).usage == 75
    assert sum_over_processes(torch.tensor([1, 2])).tolist() == [1, 2]
    with pytest.raises(ValueError, match="no code was counted"):
        codebook_use_from_counts(torch.zeros(4, dtype=torch.int64))
