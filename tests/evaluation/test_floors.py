"""Floors against plain loops, their k-means against known clusters, and what they leave out or refuse."""

import pytest
import torch
from helpers import toy_corpus

from tavq_plugin.evaluation.encoded_images import encode_images
from tavq_plugin.evaluation.floors.features import floors, nearest_divisor
from tavq_plugin.evaluation.floors.kmeans import kmeans, nearest_centroids
from tavq_plugin.evaluation.probes.ridge import fit_ridge
from tavq_plugin.hosts.tokenizer import wrap
from tavq_plugin.networks.frozen import Judge
from tavq_plugin.pixels import to_float, to_uint8

TRANSPORT = torch.tensor([0, 2])


def images(n, side=16, seed=0):
    return torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def named(train, held_out, **changed):
    """The floors by name, and why others were left out."""
    settings = {"codes": 6, "grid": 4, "seed": 0, "transport_images": TRANSPORT, "untrained": None, "weights": None}
    missing = {}
    found = floors(train, held_out, tell=missing.__setitem__, **(settings | changed))
    return {floor.name: floor for floor in found}, missing


def tokenizer():
    pytest.importorskip("vector_quantize_pytorch")
    from helpers.tiny_hosts import Autoencoder
    from vector_quantize_pytorch import VectorQuantize

    torch.manual_seed(0)
    return wrap(Autoencoder(VectorQuantize(dim=8, codebook_size=32), tokens=True), codebook="own", codebook_size=4)


# ---- k-means


def separate_clusters():
    """20 points around each of 12 far centres, shuffled; the points and their centres' numbers."""
    draw = torch.Generator().manual_seed(3)
    centres = 100 * torch.randn(12, 5, generator=draw)
    label = torch.arange(12).repeat(20)[torch.randperm(240, generator=draw)]
    return centres[label] + 0.1 * torch.randn(240, 5, generator=draw), label


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_recovers_known_clusters(seed):
    points, label = separate_clusters()
    centroids = kmeans(points, 12, seed=seed)
    means = torch.stack([points[label == number].mean(0) for number in range(12)])
    assert torch.cdist(means, centroids).min(1).values.max() < 1e-3 and len(centroids) == 12


def test_kmeans_is_a_fixed_point_of_a_plain_lloyd_step():
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
    centroids = kmeans(points, 7, seed=0, iterations=200)
    nearest = [min(range(7), key=lambda j: float((p.double() - centroids[j]).square().sum())) for p in points]
    for j in range(7):
        own = [p for p, k in zip(points, nearest, strict=True) if k == j]
        torch.testing.assert_close(centroids[j], torch.stack(own).mean(0), atol=1e-5, rtol=1e-5)
    assert nearest_centroids(points, centroids, chunk=64)[0].tolist() == nearest


def test_kmeans_depends_on_its_seed_alone():
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = kmeans(points, 8, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(kmeans(points, 8, seed=0), first) and not torch.equal(kmeans(points, 8, seed=1), first)


def test_kmeans_has_no_more_centroids_than_distinct_points():
    points = torch.tensor([[0.0, 1.0], [5.0, 2.0], [-3.0, 0.0]]).repeat(50, 1)
    found = kmeans(points, 10, seed=0)
    torch.testing.assert_close(found[found[:, 0].argsort()], points[[2, 0, 1]])
    assert kmeans(torch.ones(9, 2), 4, seed=0).tolist() == [[1.0, 1.0]]


def test_centroids_beyond_the_start_go_to_points_that_are_far_from_all_others():
    common = torch.zeros(2000, 2)
    rare = torch.tensor([[30.0, 0.0], [0.0, 40.0], [50.0, 50.0]])  # the start reads 40 points: it may miss them
    found = kmeans(torch.cat([common, rare]), 4, seed=0)
    assert torch.cdist(rare, found).min(1).values.max() < 1e-3


def test_kmeans_refuses_no_points_and_nan():
    with pytest.raises(ValueError, match="0 points and 3 centroids"):
        kmeans(torch.zeros(0, 2), 3, seed=0)
    with pytest.raises(FloatingPointError, match="NaN"):
        kmeans(torch.tensor([[1.0], [torch.nan]]), 2, seed=0)


# ---- floors


def test_mean_colour_and_thumbnail_equal_plain_loops():
    train, held_out = images(5), images(4, seed=1)
    found, _ = named(train, held_out)
    for name, side in (("mean-colour", 1), ("thumbnail", 4)):
        floor, step = found[name], 16 // side
        for ours, truth in ((floor.train, train), (floor.held_out, held_out)):
            expected = torch.empty(len(truth), 3, side, side)
            for n in range(len(truth)):
                for channel in range(3):
                    for y in range(side):
                        for x in range(side):
                            block = truth[n, channel, y * step : (y + 1) * step, x * step : (x + 1) * step]
                            expected[n, channel, y, x] = block.double().mean() / 127.5 - 1
            torch.testing.assert_close(ours.places[0], expected)
            torch.testing.assert_close(ours.pooled[0], expected.flatten(1))
        torch.testing.assert_close(floor.held_out.quantized[0], floor.held_out.places[0][TRANSPORT])
        assert floor.codes is None and floor.held_out.indices == [None] == floor.train.indices
    flat = held_out.double().mean((2, 3)).round()
    colour = found["mean-colour"].held_out.reconstruction
    assert colour.dtype == torch.uint8 and (colour.double() - flat[..., None, None]).abs().max() <= 1
    assert colour.shape == held_out.shape and (colour == colour[..., :1, :1]).all()


def test_a_thumbnail_reconstructs_a_smooth_image_nearly():
    ramp = torch.arange(16.0).mul(10).expand(4, 3, 16, 16).to(torch.uint8)
    found, _ = named(images(5), ramp)
    error = (found["thumbnail"].held_out.reconstruction.float() - ramp.float()).abs()
    assert error[..., 2:-2].max() <= 1 and error.max() <= 16  # bilinear, but for half a block at both borders


def test_patch_kmeans_equals_a_plain_loop():
    train, held_out = images(6), images(4, seed=1)
    floor = named(train, held_out)[0]["patch-kmeans"]
    assert floor.codes == 6 and floor.title == "k-means of 4 × 4 pixel patches, 6 centroids"
    grids = floor.held_out.quantized[0]
    centroids = torch.zeros(6, 48)
    for side, truth in ((floor.train, train), (floor.held_out, held_out)):
        index = side.indices[0]
        assert index.shape == (len(truth), 4, 4) and index.dtype == torch.int64
    centroids[floor.held_out.indices[0][TRANSPORT].flatten()] = grids.permute(0, 2, 3, 1).reshape(-1, 48)
    for i, n in enumerate(TRANSPORT.tolist()):
        for y in range(4):
            for x in range(4):
                patch = to_float(held_out[n, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]).flatten()
                code = int(floor.held_out.indices[0][n, y, x])
                known = centroids.abs().sum(1) > 0
                distance = torch.where(known, (centroids - patch).square().sum(1), torch.inf)
                assert int(distance.argmin()) == code
                pasted = floor.held_out.reconstruction[n, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                assert torch.equal(pasted, to_uint8(grids[i, :, y, x]).view(3, 4, 4))
        torch.testing.assert_close(floor.held_out.pooled[0][n], grids[i].mean((1, 2)))
        torch.testing.assert_close(floor.held_out.places[0][n], grids[i])


def test_patches_of_two_colours_are_pasted_without_loss():
    colours = torch.tensor([0, 200], dtype=torch.uint8)
    checks = [colours[torch.randint(2, (n, 3, 4, 4))].repeat_interleave(4, 2).repeat_interleave(4, 3) for n in (9, 4)]
    floor = named(*checks, codes=8)[0]["patch-kmeans"]  # 2 ** 3 colours
    assert torch.equal(floor.held_out.reconstruction, checks[1]) and floor.codes == 8


def test_large_grids_are_averaged_to_8_by_8_places():
    floor = named(images(3, 32), images(3, 32, seed=1), grid=16)[0]["patch-kmeans"]
    assert floor.held_out.indices[0].shape == (3, 16, 16) and floor.held_out.places[0].shape == (3, 12, 8, 8)
    expected = floor.held_out.quantized[0].unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(floor.held_out.places[0][TRANSPORT], expected)


def test_a_grid_that_does_not_divide_the_resolution_becomes_the_nearest_that_does_and_the_title_says_so():
    floor = named(images(4), images(3, seed=1), grid=5)[0]["patch-kmeans"]
    assert floor.train.indices[0].shape == (4, 4, 4)
    assert floor.title.endswith("4 × 4 patches because 5 × 5 do not divide 16 pixels")
    assert [nearest_divisor(256, grid) for grid in (16, 13, 300)] == [16, 16, 256]


def test_there_are_no_more_centroids_than_patches():
    floor = named(images(1), images(3, seed=1), codes=512, grid=2)[0]["patch-kmeans"]
    assert floor.codes == 4 and "4 centroids" in floor.title and int(floor.held_out.indices[0].max()) < 4


def test_an_untrained_encoder_gives_centroids_of_its_latents():
    train, held_out, host = images(6), images(4, seed=1), tokenizer().eval()
    built = []

    def untrained():
        built.append(tokenizer().train())
        return built[0]

    floor = named(train, held_out, untrained=untrained)[0]["untrained"]
    assert not built[0].training and floor.codes == 6 and len(floor.held_out.reconstruction) == 0
    with torch.no_grad():
        latents = host.encode(to_float(held_out)).final.latent
    index, grids = floor.held_out.indices[0], floor.held_out.quantized[0]
    assert index.shape == (4, *latents.shape[2:])
    codes = torch.full((6, latents.shape[1]), torch.inf)
    codes[index[TRANSPORT].flatten()] = grids.permute(0, 2, 3, 1).flatten(0, 2)
    points = latents[TRANSPORT].permute(0, 2, 3, 1).flatten(0, 2)
    assert [int((codes - p).square().sum(1).argmin()) for p in points] == index[TRANSPORT].flatten().tolist()


def test_floors_are_left_out_with_the_reason(tmp_path):
    found, missing = named(images(4), images(3, seed=1), weights=tmp_path)
    assert list(found) == ["mean-colour", "thumbnail", "patch-kmeans"]
    assert list(missing) == ["untrained", "mobilenet", "squeezenet"]
    assert "no builder" in missing["untrained"] and "mobilenet_v2_imagenet.pth" in missing["mobilenet"]


def test_a_ceiling_gives_the_pooled_features_of_its_network():
    body = torch.nn.Conv2d(3, 5, 3)
    judge = Judge(body, torch.nn.Flatten(), 8, [0.5] * 3, [0.25] * 3)
    held_out = images(4, seed=1)
    ceilings = {"tiny": ("Tiny", lambda folder: judge)}
    found, missing = named(images(6), held_out, ceilings=ceilings)
    floor = found["tiny"]
    assert floor.title == "frozen Tiny, pooled (ceiling: trained on ImageNet)" and "tiny" not in missing
    resized = torch.nn.functional.interpolate(held_out / 255, (8, 8), mode="bilinear", antialias=True)
    expected = body((resized - 0.5) / 0.25).mean((2, 3))
    torch.testing.assert_close(floor.held_out.pooled[0], expected)
    assert floor.held_out.places[0].shape == (4, 5, 1, 1) and floor.train.places[0].shape == (6, 5, 1, 1)
    assert len(floor.held_out.reconstruction) == 0 and floor.codes is None


def test_floors_depend_on_their_seed_alone_and_have_one_level():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train, held_out = images(6), images(4, seed=1)
    first, _ = named(train, held_out, untrained=tokenizer)  # which seeds the global stream
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, _ = named(train, held_out, untrained=tokenizer)
    targets = torch.randn(6, 3)
    for name, floor in first.items():
        assert torch.equal(floor.held_out.places[0], again[name].held_out.places[0])
        for side in (floor.train, floor.held_out):
            assert [len(field) for field in side[:4]] == [1, 1, 1, 1]
        for ours in ("pooled", "places"):
            features = [getattr(side, ours)[0].flatten(1) for side in (floor.train, floor.held_out)]
            predicted = fit_ridge(features[0], targets).predict(features[1])
            assert predicted.shape == (4, 3) and predicted.isfinite().all()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"codes": 1}, "codes=1, grid=4"),
        ({"grid": 0}, "codes=6, grid=0"),
        ({"train": images(4).float()}, "train_images is torch.float32"),
        ({"held_out": images(3, 8)}, r"held_out_images is torch.uint8 of shape \(3, 3, 8, 8\)"),
        ({"held_out": images(3)[:0]}, "4 training and 0 held-out images"),
    ],
)
def test_bad_input_is_refused_at_the_call(changed, words):
    given = {"train": images(4), "held_out": images(3)} | changed
    settings = {"codes": 6, "grid": 4} | {name: changed[name] for name in ("codes", "grid") if name in changed}
    with pytest.raises(ValueError, match=words):
        floors(
            given["train"], given["held_out"], **settings, seed=0, transport_images=TRANSPORT, untrained=None,
            weights=None, tell=print,
        )  # fmt: skip


def test_a_tokenizer_gives_places_too():
    host = tokenizer().eval()
    encoded = encode_images(host, images(3), batch_size=2, keep=torch.arange(3))
    for level in range(3):
        size = min(encoded.quantized[level].shape[2], 8)
        expected = torch.nn.functional.adaptive_avg_pool2d(encoded.quantized[level], size)
        torch.testing.assert_close(encoded.places[level], expected)


def test_the_toy_corpus_fits():
    corpus = toy_corpus.corpus()
    found, _ = named(corpus.images[: corpus.n_train], corpus.images[corpus.n_train :], transport_images=TRANSPORT[:1])
    assert found["patch-kmeans"].held_out.places[0].shape == (2, 48, 4, 4)
