"""One tiny encoder for the tests of this folder."""

import importlib.util
from functools import cache
from pathlib import Path

import pytest

from tavq_plugin.text import TextEncoder


def _sibling(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def annotated():
    """Hand-annotated descriptions."""
    return _sibling("annotated")


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """A saved BERT with 24 positions and width 32."""
    return _sibling("tiny").save_tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture
def encoder(bert_folder):
    """A fresh encoder on it."""
    return TextEncoder.from_pretrained(bert_folder)


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory):
    """A function: kind → folder of a tiny vision-language model."""
    module, folder = _sibling("tiny_vlm"), tmp_path_factory.mktemp("vlm")
    return cache(lambda kind: module.save_tiny_vlm(kind, folder / kind))
