"""The page of a run, timed: python benchmarks/explore.py RUN [--also RUN] [--pictures FOLDER] [--json OUT].

RUN is a finished run, such as tavq-demo/tavq. Measured are the seconds of `tavq explore` for 64 images from start to
end of the program, the size of the page, the milliseconds from a pointer's arrival at a unit until the frame that shows
its map has been drawn, in headless Chromium, and the seconds of the words of all codes over 500 images.

`--pictures` also writes the pictures of docs/explore.md. `--trained` names a run of `tavq train` or `compare`, which
keep the history that the view of the training draws. Give runs on drawn scenes, as photographs have licences.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from common.machine import machine
from common.result_files import markdown_table, save_results
from PIL import Image

import tavq_plugin as tavq
from tavq_plugin.use.explore.explore_run import explore_run
from tavq_plugin.use.explore.live_server import LiveServer
from tavq_plugin.use.held_out_words import run_words

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TARGETS = {"page_seconds": 60.0, "page_megabytes": 15.0, "hover_milliseconds": 50.0, "words_seconds": 10.0}
NAMES = {
    "page_seconds": "page of 64 images, from start to end of `tavq explore`, s",
    "page_megabytes": "size of the page, MB",
    "hover_milliseconds": "pointer on a unit until its map is drawn, median, ms",
    "words_seconds": "words of all codes over 500 images, s",
}
HOVER = """() => {
  window.taken = [];
  document.getElementById("units").addEventListener("pointerover", event => {
    if (!event.target.closest("button")) return;
    const start = event.timeStamp;
    requestAnimationFrame(() => setTimeout(() => taken.push(performance.now() - start)));
  });
}"""  # a task that is queued in a frame's callback runs after that frame is drawn
PICTURE_BYTES = 150_000


class Picture(NamedTuple):
    """A picture of the documentation."""

    name: str
    route: str
    of: str = "run"  # or "trained"
    do: Callable[[Any], None] = lambda page: None  # before it is taken
    width: int = 1080
    height: int = 700
    scheme: str = "light"


def hover_word(page: Any) -> None:
    """Point at the unit whose map is the most concentrated."""
    page.hover(
        "#units button >> nth="
        + str(
            page.evaluate("""() => {
      const [at, level] = location.hash.slice(1).split("/").slice(1).map(part => part - 1);
      const units = content.images[at].plans[level].units;
      const best = units.findIndex(unit => unit.rank === 1);
      return [...document.querySelectorAll("#units button")].findIndex(one => Number(one.dataset.unit) === best);
    }""")
        )
    )


def point_at_place(page: Any) -> None:
    """Light the best unit and let it stay; then point at the place of its peak."""
    hover_word(page)
    page.mouse.down()
    page.mouse.up()
    page.evaluate("scrollTo(0, 0)")
    box = page.locator(".stack").bounding_box()
    at = page.evaluate("shown.heat.indexOf(Math.max(...shown.heat)) / shown.heat.length")
    side = round(len(page.evaluate("[...shown.heat]")) ** 0.5)
    row, column = divmod(round(at * side * side), side)
    page.mouse.move(box["x"] + box["width"] * (column + 0.5) / side, box["y"] + box["height"] * (row + 0.5) / side)


def first_place(page: Any) -> None:
    """Choose a place of the coarsest map."""
    page.focus(".stack[role=application] >> nth=2")
    for key in ("ArrowDown", "ArrowRight"):
        page.keyboard.press(key)


PICTURES = (
    Picture("images", "images/3/1", do=point_at_place, height=960),
    Picture("phone", "images/3/1", do=hover_word, width=390, height=800, scheme="dark"),
    Picture("maps", "maps/3", do=first_place, height=860),
    Picture("codes", "codes/3"),
    Picture("code", "codes/3/first", height=1000),
    Picture("word", "word/red", height=760),
    Picture("codebook", "codebook/3", height=1040),
    Picture("reconstructions", "reconstructions/3", height=1200),
    Picture("training", "training", of="trained", height=820),
)


@contextmanager
def chromium() -> Iterator[Any]:
    """Headless Chromium of the system. Raises RuntimeError if it or playwright is absent."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise RuntimeError("playwright is not installed: pip install playwright") from error
    if found is None:
        raise RuntimeError("there is no Chromium on PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def visit(browser: Any, url: str, route: str, **settings: Any) -> Any:
    """A view of a page in a context of its own."""
    page = browser.new_context(**settings).new_page()
    page.goto(f"{url}#{route}")
    page.wait_for_selector("main[data-route] h2")
    page.wait_for_timeout(300)  # sprites
    return page


def page_seconds(run: Path, also: Sequence[Path], out: Path) -> tuple[float, float]:
    """Seconds of the command, with the start of Python, by the clock and of the processor."""
    others = [part for one in also for part in ("--also", str(one))]
    command = [sys.executable, "-m", "tavq_plugin", "explore", str(run), *others, "--out", str(out), "--images", "64"]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def hover_milliseconds(browser: Any, url: str, images: int = 5) -> list[float]:
    """Of each unit of the first images, sorted."""
    taken: list[float] = []
    for image in range(1, images + 1):
        page = visit(browser, url, f"images/{image}/1", viewport={"width": 1200, "height": 1400})
        page.evaluate(HOVER)
        for number in range(page.locator("#units button").count()):
            page.hover(f"#units button >> nth={number}")
        page.wait_for_timeout(100)
        taken += page.evaluate("taken")
        page.context.close()
    return sorted(taken)


def words_seconds(run: Path, images: int = 500) -> tuple[float, float, int]:
    """Seconds by the clock and of the processor, and the number of codes of all levels."""
    loaded = tavq.load(run)
    pictures, texts, _ = loaded.held_out()
    start, of_processor = time.perf_counter(), time.process_time()
    levels = run_words(loaded.tokenizer, pictures[:images], texts[:images])
    taken = time.perf_counter() - start, time.process_time() - of_processor
    return *taken, sum(len(level.evidence.code_images) for level in levels)


def take_pictures(browser: Any, urls: dict[str, str], live: LiveServer, out: Path) -> list[Path]:
    """Write a PNG of 256 colours for every view; returns the files. Raises ValueError if one is too large."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for picture in PICTURES:
        if picture.of not in urls:
            continue
        route = picture.route
        view = {"viewport": {"width": picture.width, "height": picture.height}, "color_scheme": picture.scheme}
        page = visit(browser, urls[picture.of], route.replace("/first", ""), **view)
        if route.endswith("/first"):  # the most used code with a word above chance
            page.evaluate("""() => { const card = content.cards[2].cards.find(one => one.words.some(word => word[5]));
              go("codes", 3, (card ?? content.cards[2].cards[0]).code) }""")
            page.wait_for_selector("text=Top patches")
            page.wait_for_timeout(300)
        picture.do(page)
        files.append(saved(page, out / f"explore-{picture.name}.png"))
    page = visit(browser, live.address, "live/1", viewport={"width": 1080, "height": 1080}, color_scheme="light")
    from tavq_plugin.data.synthetic_scenes import scenes

    drawn = scenes(1, seed=11, resolution=64)
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(drawn.images[0].permute(1, 2, 0).numpy()).save(Path(folder) / "own.png")
        page.set_input_files("#own-image", Path(folder) / "own.png")
        page.fill("#own-text", drawn.texts[0])
        page.click("#own button")
        page.wait_for_selector("#own-result #units button")
    page.hover("#units button >> nth=0")
    return [*files, saved(page, out / "explore-live.png")]


def saved(page: Any, file: Path) -> Path:
    """The page's picture, with 256 colours."""
    page.screenshot(path=file)
    Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    if file.stat().st_size > PICTURE_BYTES:
        raise ValueError(f"{file.name} has {file.stat().st_size:,} bytes: at most {PICTURE_BYTES:,}")
    return file


def report(content: dict[str, Any]) -> str:
    """The page of results."""
    rows = [(NAMES[name], content[name], f"< {target:g}") for name, target in TARGETS.items()]
    low, high = content["hover_spread"]
    return (
        f"# The page of a run\n\n{content['run']}, {content['codes']} codes of all levels. {content['machine']}. "
        f"`python benchmarks/explore.py RUN --json OUT`.\n\n{markdown_table(('', 'measured', 'target'), rows)}\n"
        f"{content['hovers']} units were pointed at; the fastest took {low} ms and the slowest {high} ms. "
        f"The page took {content['page_cpu_seconds']} s of processor time, and the words "
        f"{content['words_cpu_seconds']} s; where the clock says far more, other programs ran on it. The page's "
        "time holds what a run of the demo does not keep: its scenes are drawn again, and their texts encoded.\n"
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, and take the pictures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--also", type=Path, action="append", default=[])
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        out = Path(folder) / "page"
        seconds, of_processor = page_seconds(given.run, given.also, out)
        page = out / "index.html"
        taken = hover_milliseconds(browser, page.as_uri())
        words, words_cpu, codes = words_seconds(given.run)
        content = {
            "run": f"A run of {tavq.load(given.run).recipe.resolution} px with {len(given.also)} more beside it",
            "machine": machine(), "codes": codes,
            "page_seconds": round(seconds, 1), "page_cpu_seconds": round(of_processor, 1),
            "page_megabytes": round(page.stat().st_size / 1e6, 2),
            "hover_milliseconds": round(statistics.median(taken), 1), "hovers": len(taken),
            "hover_spread": [round(taken[0], 1), round(taken[-1], 1)], "words_seconds": round(words, 1),
            "words_cpu_seconds": round(words_cpu, 1),
        }  # fmt: skip
        print(report(content))
        if given.pictures is not None:
            urls = {"run": page.as_uri()}
            if given.trained is not None:
                explore_run(given.trained, out=Path(folder) / "trained", images=8)
                urls["trained"] = (Path(folder) / "trained" / "index.html").as_uri()
            made = explore_run(given.run, out=Path(folder) / "live", images=8)
            with LiveServer(0) as live:
                live.show(made.content, made.run)
                threading.Thread(target=live.serve_forever, daemon=True).start()
                print(*take_pictures(browser, urls, live, given.pictures), sep="\n")
                live.shutdown()
    if given.json is not None:
        save_results(given.json, content, report(content))
    return content


if __name__ == "__main__":
    main()
