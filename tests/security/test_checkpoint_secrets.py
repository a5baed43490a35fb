"""What a checkpoint says of its author's keys and folders stays out of the JSON, which only its owner can read."""

import argparse
import json
import os

import pytest
import torch

from tavq_plugin.io.convert_checkpoint import convert_checkpoint

SECRET = "Zq9-very-secret"
SETTINGS = {
    "wandb_api_key": SECRET,
    "logger": {"hf_token": SECRET, "auth": {"user": "ann", "password": SECRET}},
    "cmd": "train --wandb sk-abcdefghijklmnop0123 --data https://ann:pw-of-ann@host/x",
    "data": "/home/ann/secret-project/images",
    "args": argparse.Namespace(secret_key=SECRET, out="/Users/ann/runs"),
    "tokenizer": "vqgan",
    "num_tokens": 16,
    "token": 3,
}


@pytest.fixture
def description(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": SETTINGS}, tmp_path / "a.ckpt")
    return convert_checkpoint(tmp_path / "a.ckpt")[-1]


def test_secrets_and_homes_are_masked_and_named(description):
    text, content = description.read_text(), json.loads(description.read_text())
    assert not [part for part in (SECRET, "sk-abc", "pw-of-ann", "/home/ann", "/Users/ann") if part in text]
    kept = content["configuration"]["hyper_parameters"]
    assert kept["tokenizer"] == "vqgan" and kept["num_tokens"] == 16 and kept["token"] == 3
    assert kept["data"] == "~/secret-project/images" and kept["args"]["out"] == "~/runs"
    assert "hyper_parameters.wandb_api_key" in content["masked"] and "hyper_parameters.data" in content["masked"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
def test_only_the_owner_can_read_the_description(description):
    assert description.stat().st_mode & 0o700 == 0o600
    assert description.stat().st_mode & 0o077 == 0
