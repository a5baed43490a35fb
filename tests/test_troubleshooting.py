"""Every message and figure that the page of symptoms quotes is one of the code's."""

import ast
import re
from pathlib import Path

import pytest
from helpers.plain_training import Plain, attached, one_step

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
LITERALS = {
    node.value
    for folder in ("tavq_plugin", "adapters")
    for path in (ROOT / folder).rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
}  # also the fixed parts of f-strings
MESSAGES = [line for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_in_the_code(message):
    """`…` stands for what an f-string fills in, or for words left out."""
    parts = [part.strip(" ,;:") for part in message.split("…")]
    assert any(len(part) > 9 for part in parts)
    assert [part for part in parts if not any(part in literal for literal in LITERALS)] == []


def test_the_quoted_figures_are_of_align_last():
    _, align = attached(host := Plain(), balance=1.0)
    one_step(host, align)
    quoted = set(re.findall(r'align\.last\["(\w+)"\]', PAGE))
    assert quoted and quoted <= set(align.last)


def test_the_links_within_the_page_lead_to_its_sections():
    titles = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    links = set(re.findall(r"\]\(#([\w-]+)\)", PAGE))
    assert links == anchors
