"""What `wrap` and `attach` log, print, and show as a table."""

import copy
import logging
import pickle

import pytest
import torch
from helpers.conformance import IMAGES, traces
from helpers.plain_training import DESCRIPTION, Plain, attached
from helpers.tiny_hosts import tiny

import tavq_plugin as tavq
from tavq_plugin.losses.alignment_settings import BALANCE


def parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def test_wrap_logs_one_line_that_print_repeats(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="tavq_plugin"):
        tokenizer = tavq.wrap(Plain(), **DESCRIPTION)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("tavq_plugin", "INFO")
    assert record.getMessage() == f"wrapped: {tokenizer}" and "\n" not in str(tokenizer)
    assert str(tokenizer) == (
        "HostAdapter on Plain: levels fine 32×32, mid 16×16, vq 8×8 (for 64×64 px); codebook shared 16×4; "
        f"{parameters(tokenizer.hierarchy)} parameters added; gradient to the encoder and the codebook"
    )
    assert capsys.readouterr() == ("", "")


def test_attach_logs_one_line_that_print_repeats(caplog, capsys):
    pytest.importorskip("taming")
    host = tiny("taming-vq")
    capsys.readouterr()  # taming's decoder prints when it is built
    with caplog.at_level(logging.INFO, logger="tavq_plugin"):
        align = tavq.attach(host, torch.optim.Adam(host.parameters()), text_dim=6, grad_to="encoder")
    (record,) = caplog.records
    assert record.getMessage() == f"attached: {align}" and "\n" not in str(align)
    first, second = align.adapter.taps
    assert str(align) == (
        f"TamingVQGAN on VQGAN: levels {first} 8×8, {second} 4×4, quantize 2×2 (for 8×8 px); codebook shared 32×8; "
        f"heads 3 × (8 → 6 → 6); {parameters(align):,} parameters added; gradient to the encoder, "
        f"balance {', '.join(f'{ratio:g}' for ratio in BALANCE)}"
    )
    assert capsys.readouterr() == ("", "")
    tavq.detach(host)


def test_nothing_is_shown_by_default_or_when_it_is_turned_off(caplog, capsys):
    host = Plain()
    attached(host)
    assert caplog.records == [] and capsys.readouterr() == ("", "")  # INFO is below the root logger's level
    tavq.detach(host)
    with caplog.at_level(logging.INFO, logger="tavq_plugin"):
        tavq.wrap(host, log_summary=False, **DESCRIPTION)
        attached(host, log_summary=False)
    assert caplog.records == []
    tavq.detach(host)


def test_the_table_has_a_row_per_level():
    host = Plain()
    _, align = attached(host, codebook="own", codebook_size=5)
    rows = [line.split() for line in align.summary().splitlines()]
    assert rows[:4] == [
        ["level", "tap", "channels", "grid", "codes", "text"],
        ["1", "fine", "8", "32×32", "5", "word"],
        ["2", "mid", "8", "16×16", "5", "phrase"],
        ["3", "vq", "4", "8×8", "16", "sentence"],
    ]
    assert {row[0] for row in rows[4:]} == {
        "adapter", "grids", "heads", "alignment", "rates", "schedule", "codebook", "gradient", "parameters",
    }  # fmt: skip
    assert "codebook    own 5×4 per added level, the host's 16×4" in align.summary()
    assert f"parameters  {parameters(align)} added" in align.summary()
    tavq.detach(host)


def test_a_tokenizers_table_shows_its_settings():
    pytest.importorskip("taming")
    tokenizer = tavq.wrap(tiny("taming-vq"), detach_added_levels=True)
    assert "to the encoder and the codebook; the added levels send none to the host" in tokenizer.summary()
    assert "heads" not in tokenizer.summary() and "text" not in tokenizer.summary()
    tokenizer.send_gradient("codebook")
    assert "gradient    to the codebook; " in tokenizer.summary()


def test_the_summary_says_that_a_host_has_no_explicit_codebook():
    host = Plain()
    host.vq.second = torch.nn.Linear(4, 4)  # two k c parameters, and looked_up= says that vectors are no rows of one
    parse = DESCRIPTION["parse"]
    sums = {**DESCRIPTION, "parse": lambda z, output: (q := parse(z, output))._replace(looked_up=q.vectors)}
    tokenizer = tavq.wrap(host, **sums, codebook="own", codebook_size=5, grad_to="encoder")
    assert "the host's not explicit" in str(tokenizer)
    assert tokenizer.summary().splitlines()[3].split() == ["3", "vq", "4", "8×8", "-"]


def test_copies_give_the_same_summary_and_detach_leaves_no_trace():
    host = Plain()
    before = traces(host)
    _, align = attached(host)
    assert copy.deepcopy(align).summary() == align.summary()
    tavq.detach(host)
    assert traces(host) == before
    tokenizer = tavq.wrap(host, **DESCRIPTION)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.summary() == tokenizer.summary() and str(again) == str(tokenizer)
    assert len(again(IMAGES)[1].levels) == 3
