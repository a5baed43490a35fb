"""CITATION.cff has what version 1.2.0 of the format requires, and agrees with the package."""

import configparser

import yaml
from helpers.page_blocks import ROOT

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def is_a_name(author):
    """A person has a family or given name, and an entity a name."""
    return bool(author.keys() & {"name", "family-names", "given-names"}) and all(author.values())


def test_the_required_fields_are_there():
    assert CITATION["cff-version"] == "1.2.0"
    assert all(isinstance(CITATION[name], str) and CITATION[name] for name in ("message", "title"))
    assert CITATION["type"] in ("software", "dataset")
    assert CITATION["authors"] and all(map(is_a_name, CITATION["authors"]))


def test_the_paper_is_a_reference():
    (paper,) = CITATION["references"]
    assert paper["type"] == "article" and paper["title"]
    assert paper["authors"] and all(map(is_a_name, paper["authors"]))
    assert "2503.01261" in paper["url"]
    assert all(part.keys() >= {"type", "value"} for part in paper["identifiers"])


def test_it_agrees_with_the_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    package = config["metadata"]
    assert [str(CITATION[key]) for key in ("title", "version", "license")] == [
        package["name"], package["version"], package["license"],
    ]  # fmt: skip
