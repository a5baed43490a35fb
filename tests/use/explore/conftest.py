"""Two short runs on drawn scenes, their page, and one browser for all tests of the page."""

import shutil
from types import SimpleNamespace

import pytest
from helpers.toy_corpus import Letters, recipe, save_as_scenes

from tavq_plugin.data.corpus import Corpus
from tavq_plugin.data.synthetic_scenes import scenes
from tavq_plugin.evaluation.sources.finished_runs import runs_in
from tavq_plugin.text.store import TextStore

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = (
    'A red ring. <script>document.title="taken"</script> <img src=x onerror="document.title=1"> </script> & "stars".'
)
TRAIN, HELD_OUT, SHOWN = 8, 30, 4


@pytest.fixture(scope="session")
def toy_scenes():
    """A corpus of drawn scenes of 16 px; the text of the third held-out image holds HTML."""
    drawn = scenes(TRAIN + HELD_OUT, seed=3, resolution=16)
    texts = [scene.caption for scene in drawn.scenes]
    texts[TRAIN + 2], texts[TRAIN + 5] = HOSTILE, ""
    return Corpus("toy scenes", drawn.images, texts, TextStore.build(texts, Letters(), centre_on=range(TRAIN)), TRAIN)


@pytest.fixture(scope="session")
def toy_runs(tmp_path_factory, toy_scenes):
    """The folders of two seeds of one run, with the corpus beside each."""
    pytest.importorskip("taming")
    pytest.importorskip("accelerate")
    from tavq_plugin.training import fit

    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("runs") / f"seed{seed}"
        fit("tavq", recipe(seed=seed, diagnose_every=1), toy_scenes, folder)
        save_as_scenes(toy_scenes, folder / "data")
        folders.append(folder)
    return folders


@pytest.fixture(scope="session")
def explored(tmp_path_factory, toy_runs):
    """The page of the first run with the second beside it: its file, content, and what it was made of."""
    pytest.importorskip("jinja2")
    from tavq_plugin.use.explore.page_data import page_content
    from tavq_plugin.use.explore.page_images import read_page_images
    from tavq_plugin.use.explore.run_codes import load_explored
    from tavq_plugin.use.explore.write_page import page_html

    finished = [runs_in(folder, None, allow=())[0] for folder in toy_runs]
    runs = [load_explored(run) for run in finished]
    images = read_page_images(finished[0], None, shown=SHOWN, encoder=Letters)
    content = page_content(runs[0], images, also=runs[1:])
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(page_html(content), encoding="utf-8")
    return SimpleNamespace(file=file, content=content, runs=runs, images=images, url=f"file://{file}")


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium of the system."""
    if BROWSER is None:
        pytest.skip("no chromium on PATH")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, explored):
    """A function: route → the page at it. At its end nothing was said on the console, and nothing was asked for."""
    said, asked, contexts = [], [], []

    def open_at(route="", *, width=1200, height=900, scheme="light", url=None):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((url or explored.url) + (f"#{route}" if route else ""))
        page.wait_for_selector("main[data-route] h2")
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert said == []
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}, asked
    assert {url.partition("#")[0] for url in asked if url.startswith("file:")} <= {explored.url}
