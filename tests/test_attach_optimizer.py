"""An optimizer's state loads before and after attach; a schedule that came before it is refused by name."""

import copy
import pickle

import pytest
import torch
from helpers.conformance import IMAGES, texts
from helpers.tiny_hosts import tiny

import tavq_plugin as tavq
from tavq_plugin.attach import attachment_of

LR = torch.optim.lr_scheduler


def made():
    torch.manual_seed(0)
    host = tiny("taming-vq").train()
    return host, torch.optim.Adam(host.parameters(), lr=1e-3)


def step(host, optimizer, align=None):
    optimizer.zero_grad()
    out = host(IMAGES)
    loss = out[0].mean() + out[1] + (0 if align is None else align(texts()))
    loss.backward()
    optimizer.step()


def attached(host, optimizer, **settings):
    return tavq.attach(host, optimizer, text_dim=texts()["word"].embeddings.shape[-1], **settings)


@pytest.fixture
def before():
    """An optimizer's state without the plug-in, after one step."""
    host, optimizer = made()
    step(host, optimizer)
    return copy.deepcopy(optimizer.state_dict())


def moments(optimizer, group):
    return [optimizer.state[p]["exp_avg"] for p in optimizer.param_groups[group]["params"] if p in optimizer.state]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("order", ["attach, load", "load, attach"])
def test_a_state_from_before_the_plug_in_loads_in_both_orders(before, order):
    host, optimizer = made()
    before["param_groups"][0]["lr"] = 0.5
    if order == "load, attach":
        optimizer.load_state_dict(before)
    align = attached(host, optimizer)
    if order == "attach, load":
        optimizer.load_state_dict(before)
    groups = optimizer.param_groups
    assert len(groups) == 3 and groups[0]["lr"] == 0.5
    assert groups[1]["lr"] == (0.5 if order == "load, attach" else 1e-3)
    saved = [value["exp_avg"] for value in before["state"].values()]
    assert saved and same(moments(optimizer, 0), saved)
    step(host, optimizer, align)
    assert moments(optimizer, 1) and moments(optimizer, 2)


def test_the_plug_in_keeps_its_own_state_when_one_of_the_host_is_loaded(before):
    host, optimizer = made()
    align = attached(host, optimizer)
    step(host, optimizer, align)
    own = [value.clone() for value in moments(optimizer, 2)]
    optimizer.load_state_dict(before)
    assert own and same(moments(optimizer, 2), own)


def test_a_state_of_both_loads_after_attach():
    host, optimizer = made()
    step(host, optimizer, attached(host, optimizer))
    both = copy.deepcopy(optimizer.state_dict())
    host, optimizer = made()
    attached(host, optimizer)
    optimizer.load_state_dict(both)
    saved = [both["state"][i]["exp_avg"] for i in both["param_groups"][2]["params"] if i in both["state"]]
    assert saved and same(moments(optimizer, 2), saved)


def test_another_number_of_groups_is_refused_by_name():
    host, optimizer = made()
    attached(host, optimizer, alignment={"heads_rate": 1})
    one_group = copy.deepcopy(optimizer.state_dict())
    host, optimizer = made()
    attached(host, optimizer)
    with pytest.raises(ValueError, match=r"tavq.attach added 2 parameter groups .* has 2.*heads_rate"):
        optimizer.load_state_dict(one_group)


def test_nothing_is_left_after_detach(before):
    host, optimizer = made()
    attached(host, optimizer)
    pickle.dumps(optimizer)
    tavq.detach(host)
    optimizer.load_state_dict(before)
    assert not optimizer._optimizer_load_state_dict_pre_hooks and len(optimizer.param_groups) == 1


SCHEDULES = {
    "LambdaLR": lambda o: LR.LambdaLR(o, lambda step: 1.0),
    "OneCycleLR": lambda o: LR.OneCycleLR(o, 0.1, total_steps=10),
    "CosineAnnealingLR": lambda o: LR.CosineAnnealingLR(o, 10),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_was_built_before_attach_is_refused_and_after_it_works(name):
    host, optimizer = made()
    SCHEDULES[name](optimizer)
    with pytest.raises(ValueError, match="tavq.attach before you build the schedule"):
        attached(host, optimizer)
    assert len(optimizer.param_groups) == 1 and attachment_of(host) is None
    host, optimizer = made()
    align = attached(host, optimizer)
    schedule = SCHEDULES[name](optimizer)
    step(host, optimizer, align)
    schedule.step()
    assert len(schedule.get_last_lr()) == 3
