"""How Sphinx builds these pages: `python -m sphinx -W -b html docs OUT`."""

from __future__ import annotations

import configparser
import os
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import download_reference, pending_xref
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT / "setup.cfg", encoding="utf-8")

project = SETTINGS["metadata"]["name"]
version = release = SETTINGS["metadata"]["version"]
author = f"{project} contributors"
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.doctest"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
smartquotes = False  # "auto" stays as it is typed
myst_heading_anchors = 4  # GitHub's anchors, as in diagnostics.md#in-the-trainers-history
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = f"{project} {version}"
html_math_renderer = "mathml"  # drawn by the browser: no script of another server, and a wrong equation fails the build

# ---- API

default_role = "code"  # docstrings write `name` for code, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

# What docstrings find in their own modules.
doctest_global_setup = """
import torch
from tavq_plugin.losses import CodeDistribution, GaussianCodes
from tavq_plugin.losses.alignment_settings import AlignmentSettings
from tavq_plugin.ot import solve
from tavq_plugin.text import Splitter, split
"""

# ---- links

linkcheck_ignore = [r"https?://"]  # pages and files of this repository alone are checked; no network is needed


def link_files_outside_docs(app: Sphinx, doctree: nodes.document) -> None:
    """Make links to Markdown files of the repository outside docs downloads, and links to its folders plain text.

    Other files MyST makes downloads by itself. It warns of a link to a file that does not exist.
    """
    page = Path(app.env.doc2path(app.env.current_document.docname))
    for node in list(doctree.findall(pending_xref)):
        if node["reftype"] != "myst":
            continue
        target = node["reftarget"]
        if node["refdomain"] == "doc" and os.path.isabs(target):  # MyST takes it for a page, without its ending
            file = os.path.relpath(f"{target}.md", page.parent)
            node.replace_self(download_reference("", "", *node.children, reftarget=file, refdoc=node["refdoc"]))
        elif target.startswith("..") and (page.parent / target).is_dir():
            node.replace_self(node.children)


def write_mathml(translator: HTML5Translator, node: nodes.Element) -> None:
    """Write an equation as MathML; warn if it is not valid."""
    try:
        translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    except MathError as error:
        logging.getLogger(__name__).warning("equation %r: %s", node.astext(), error, location=node)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
    app.connect("doctree-read", link_files_outside_docs, priority=100)  # before downloads are collected
