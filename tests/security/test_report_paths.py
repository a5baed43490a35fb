"""Pages that people pass on show no absolute path of the machine that made them."""

import json

from helpers.comparison_content import comparison_content

from tavq_plugin.evaluation.report.markdown import markdown
from tavq_plugin.evaluation.report.write import page

INIT, DATA = "/home/ann/secret project/last.ckpt", "/data/ann/images"


def test_the_report_shows_no_absolute_path():
    content = comparison_content(methods=2)
    content["protocol"] |= {"data": DATA}
    content["protocol"]["recipe"] |= {"init": INIT.replace(" ", "-"), "init_sha256": "0" * 64}
    content["failed"] = {"tavq/seed0": f"FileNotFoundError: no {DATA}/7.png; see https://host/docs/a/b"}
    before = json.dumps(content, sort_keys=True)
    for made in (page(content, {}, {}), markdown(content)):
        assert "/data/ann" not in made and "/home/ann" not in made
        assert "…/secret-project/last.ckpt" in made and "…/images/7.png" in made and "https://host/docs/a/b" in made
    assert json.dumps(content, sort_keys=True) == before
