"""Sources to tokens: encoded once, checked against the decoder, refused by name; and tokens back to images."""

import pytest
import torch
from helpers.tiny_hosts import tiny
from helpers.toy_corpus import corpus, recipe
from safetensors.torch import load_file, save_file

from tavq_plugin.attach import attach
from tavq_plugin.cli.demo_folder import save_run
from tavq_plugin.evaluation.sources.finished_runs import Loaded
from tavq_plugin.evaluation.sources.read_sources import UserTokenizer, read_sources
from tavq_plugin.hosts.tokenizer import wrap
from tavq_plugin.io.state_tree import load_tree
from tavq_plugin.losses.text_alignment import TextAlignment
from tavq_plugin.pixels import to_float, to_uint8
from tavq_plugin.tasks.decode_tokens import decode_tokens
from tavq_plugin.tasks.encode_runs import encode_run
from tavq_plugin.tasks.task_data import drawn_data
from tavq_plugin.training import fit
from tavq_plugin.training.build import build_tokenizer
from tavq_plugin.training.demo_recipe import recipe_of_run

pytest.importorskip("taming")
pytest.importorskip("accelerate")
DATA = drawn_data(resolution=16, n_train=6, n_eval=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of two finished runs."""
    out = tmp_path_factory.mktemp("runs")
    for method in ("vqgan", "tavq"):
        fit(method, recipe(steps=2), corpus(), out / method)
    return out


def source_of(*given):
    (source,) = read_sources([str(place) for place in given])
    return source


def user_source(tokenizer, *, own_levels=True):
    return UserTokenizer("mine", "setup.py:build", Loaded(tokenizer, None, own_levels))


def tokenizer_of(name="taming-vq", **settings):
    torch.manual_seed(0)
    return wrap(tiny(name), log_summary=False, **settings)


@pytest.mark.parametrize("levels", ["final", "all"])
def test_tokens_decode_to_the_tokenizers_own_images(runs, tmp_path, levels):
    run = encode_run(source_of(runs / "tavq"), DATA, tmp_path, levels=levels)
    images = DATA.held_out.images
    with torch.no_grad():
        codes = run.tokenizer.encode(to_float(images))
        own = to_uint8(run.tokenizer.decode(codes))
    indices = run.held_out.layout.unflatten(run.held_out.tokens)
    expected = [codes.final, codes.levels[1], codes.levels[0]][: 1 if levels == "final" else 3]
    assert all(torch.equal(ours, level.indices) for ours, level in zip(indices, expected, strict=True))
    assert len(run.train.tokens) == 6 and run.train.fingerprint != run.held_out.fingerprint
    assert len(run.held_out.vectors) == run.held_out.layout.vocabulary
    assert (decode_tokens(run, run.held_out.tokens, batch_size=3).int() - own.int()).abs().max() <= 1


def test_the_heads_of_an_aligned_run_come_with_it(runs, tmp_path):
    assert encode_run(source_of(runs / "vqgan"), DATA, tmp_path / "vqgan").align is None
    heads = encode_run(source_of(runs / "tavq"), DATA, tmp_path / "tavq").align
    tree = load_tree(runs / "tavq" / "method.safetensors")
    saved = {name.removeprefix("align."): value for name, value in tree.items() if name.startswith("align.")}
    assert saved and heads.text_dim == 6 and not heads.training
    assert all(torch.equal(value, heads.state_dict()[name]) for name, value in saved.items())


def test_a_second_call_reads_what_the_first_one_wrote(runs, tmp_path):
    seen, source = [], source_of(runs / "vqgan")
    first = encode_run(source, DATA, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (10, 10)
    again = encode_run(source, DATA, tmp_path, progress=lambda done, total: pytest.fail("encoded again"))
    assert torch.equal(first.train.tokens, again.train.tokens) and first.train.layout == again.train.layout
    assert torch.equal(first.train.vectors, again.train.vectors) and again.train.fingerprint == first.train.fingerprint


def test_tokens_of_another_tokenizer_are_refused_and_those_of_other_images_replaced(runs, tmp_path):
    encode_run(source_of(runs / "vqgan"), DATA, tmp_path)
    before = (tmp_path / "tokens.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"tokens of another tokenizer than tavq, seed 0 \(.*give another --out"):
        encode_run(source_of(runs / "tavq"), DATA, tmp_path)
    assert (tmp_path / "tokens.safetensors").read_bytes() == before
    said = []
    other = encode_run(
        source_of(runs / "tavq"), drawn_data(resolution=16, n_train=3, n_eval=2), tmp_path, tell=said.append
    )
    assert len(other.train.tokens) == 3 and "they are replaced" in said[0]


def test_a_foreign_file_in_the_folder_is_left_alone(runs, tmp_path):
    save_file({"mine": torch.zeros(1)}, tmp_path / "tokens.safetensors")
    with pytest.raises(FileExistsError, match="was not made by tavq task"):
        encode_run(source_of(runs / "vqgan"), DATA, tmp_path)
    assert "mine" in load_file(tmp_path / "tokens.safetensors")


def test_a_users_tokenizer_stays_as_it_was(tmp_path):
    host = tiny("taming-vq").train()
    optimizer = torch.optim.Adam(host.parameters())
    attachment = attach(host, optimizer, text_dim=6)
    heads = attachment.alignment
    tokenizer = wrap(tiny("taming-vq"), log_summary=False).train()
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    source = UserTokenizer("mine", "setup.py:build", Loaded(tokenizer, heads, True))
    run = encode_run(source, DATA, tmp_path)
    decode_tokens(run, run.held_out.tokens)
    assert run.align is heads and tokenizer.training and tokenizer.host.training
    assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())


def test_levels_that_nobody_trained_are_refused(tmp_path):
    source = user_source(tokenizer_of(), own_levels=False)
    assert encode_run(source, DATA, tmp_path).train.layout.grids[0].codes == 32
    with pytest.raises(ValueError, match="nobody trained its added levels"):
        encode_run(source, DATA, tmp_path / "all", levels="all")
    with pytest.raises(ValueError, match="give one of final, all"):
        encode_run(source, DATA, tmp_path / "both", levels="both")


class Unlike:
    """An adapter that answers as another does, but for what is given."""

    def __init__(self, adapter, **answers):
        self.adapter, self.answers = adapter, answers

    def __getattr__(self, name):
        return self.answers.get(name) or getattr(self.adapter, name)


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"codebook": lambda: None}, "mine, seed 0 .* shows no codebook"),
        ({"codebook": lambda: torch.zeros(32, 3)}, "vectors of width 3"),
        ({"codebook": lambda: torch.zeros(32, 8)}, "not the vectors that its decoder reads"),
        ({"codebook": lambda: torch.zeros(1, 8)}, "no numbers of its 1 codes"),
        ({"decode": lambda z: torch.rand(len(z), 3, 16, 16)}, "random in eval mode"),
    ],
)
def test_a_host_whose_indices_are_not_its_decoders_vectors_is_refused(tmp_path, answers, why):
    tokenizer = tokenizer_of(codebook="own", grad_to="encoder")  # its added levels do not look the host's codebook up
    tokenizer.adapter = Unlike(tokenizer.adapter, **answers)
    with pytest.raises(ValueError, match=why):
        encode_run(user_source(tokenizer), DATA, tmp_path)
    assert not (tmp_path / "tokens.safetensors").exists()


def test_a_residual_quantizer_is_refused_by_name(tmp_path):
    pytest.importorskip("vector_quantize_pytorch")
    tokenizer = tokenizer_of("lucidrains-residual", codebook="own", codebook_size=32, grad_to="encoder")
    with pytest.raises(ValueError, match=r"mine, seed 0 \(setup.py:build\)"):
        encode_run(user_source(tokenizer), DATA, tmp_path)


@pytest.mark.parametrize("options", [{}, {"alignment": {"hidden": 8, "balance": [0.25, 0.25, 0.75], "rise": 0.3}}])
def test_a_run_of_the_demo_has_its_heads_too(tmp_path, options):
    (tmp_path / "out").mkdir()
    settings = {"run": "tavq", "seed": 0, "steps": 1, "resolution": 16, **options}
    tokenizer = build_tokenizer(recipe_of_run(settings))
    hidden = options.get("alignment", {}).get("hidden")
    align = TextAlignment(tokenizer, 6, level_weights=(2.5, 2.5, 0.35), hidden=hidden)
    save_run(tmp_path / "out" / "tavq", tokenizer, align, settings, {"seconds_per_step": 1.0, "plugin_share": 0.1})
    run = encode_run(source_of(tmp_path / "out" / "tavq"), DATA, tmp_path / "tokens")
    assert all(torch.equal(v, align.state_dict()[name]) for name, v in run.align.state_dict().items())


def test_tokens_that_no_place_can_hold_are_not_decoded(tmp_path):
    run = encode_run(user_source(tokenizer_of()), DATA, tmp_path)
    masked = torch.full_like(run.held_out.tokens, run.held_out.layout.mask)
    with pytest.raises(ValueError, match="no code of its level"):
        decode_tokens(run, masked)
