"""Synthetic scenes from a seed: coloured, textured shapes with boxes, label masks, questions and a long text."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from tavq_plugin.data.synthetic_text import describe, questions

COLOURS = {
    "red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 220), "yellow": (240, 210, 40),
    "purple": (140, 50, 170), "orange": (245, 130, 30), "white": (250, 250, 250), "black": (20, 20, 20),
}  # fmt: skip
BACKGROUNDS = {"grey": (150, 150, 150), "beige": (225, 205, 170), "pink": (245, 180, 190), "cyan": (150, 220, 225)}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = {"small": 0.14, "large": 0.23}  # half the width, as a share of the picture
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
PLACE_NAMES = {"middle centre": "centre"}  # where the name is not row and column
CANVAS = 128  # a scene is drawn at this side in pixels or more, and at least twice its resolution, then shrunk


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene; positions and radius are shares of the picture."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        """Half the width."""
        return SIZES[self.size]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in 0..1."""
        r = self.radius
        return self.x - r, self.y - r, self.x + r, self.y + r

    @property
    def place(self) -> str:
        """Where in the picture, in words: "top left", "centre", …"""
        row, column = ROWS[min(2, int(self.y * 3))], COLUMNS[min(2, int(self.x * 3))]
        return PLACE_NAMES.get(f"{row} {column}", f"{row} {column}")

    @property
    def phrase(self) -> str:
        """The name with every attribute, without the texture if it is plain."""
        texture = "" if self.texture == "plain" else f" {self.texture}"
        return f"{self.size}{texture} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """A picture with its annotations."""

    image: np.ndarray  # h w 3 uint8
    mask: np.ndarray  # h w uint8: 0 background, i + 1 object i
    objects: tuple[SceneObject, ...]
    background: str
    text: str
    qa: tuple[dict[str, str], ...]

    @property
    def caption(self) -> str:
        """A short caption that follows from the picture alone: the objects in reading order, and the background.

        >>> render(0, 3, 32).caption
        'Small orange star at top centre. Small purple cross at middle left. Beige background.'
        """
        places = [PLACE_NAMES.get(f"{row} {column}", f"{row} {column}") for row in ROWS for column in COLUMNS]
        ordered = sorted(self.objects, key=lambda item: (places.index(item.place), item.y, item.x))
        shown = [f"{item.size} {item.colour} {item.shape} at {item.place}" for item in ordered]
        return " ".join(f"{part.capitalize()}." for part in (*shown, f"{self.background} background"))

    @property
    def boxes(self) -> tuple[dict, ...]:
        """One per object: phrase, box in 0..1, and whether no other object has this phrase."""
        phrases = [item.phrase for item in self.objects]
        return tuple(
            {"phrase": item.phrase, "box": list(item.box), "unique": phrases.count(item.phrase) == 1}
            for item in self.objects
        )


class Scenes(NamedTuple):
    """A set of scenes, ready to train on."""

    images: Tensor  # n 3 r r uint8
    texts: list[str]
    scenes: list[Scene]


def render(seed: int, index: int, resolution: int) -> Scene:
    """Scene `index` of a seed; the layout and the text are the same at every resolution.

    >>> render(0, 3, 32).text == render(0, 3, 64).text
    True
    """
    draw = random.Random(f"{seed}/{index}")
    background = draw.choice(list(BACKGROUNDS))
    objects = _draw_objects(draw)
    text, qa = describe(objects, background, draw), questions(objects, background)
    side = max(2, -(-CANVAS // resolution)) * resolution
    picture = _gradient_background(BACKGROUNDS[background], side)
    mask = np.zeros((resolution, resolution), dtype=np.uint8)
    for number, item in enumerate(objects, 1):
        stencil = _stencil(item, side)
        picture.paste(_fill(item, side), mask=stencil)
        small = np.asarray(stencil.resize((resolution, resolution), Image.Resampling.BOX))
        mask[small > 127] = number
    image = np.asarray(picture.resize((resolution, resolution), Image.Resampling.BOX))
    return Scene(image, mask, objects, background, text, qa)


def scenes(n: int, *, seed: int = 0, resolution: int = 32, start: int = 0) -> Scenes:
    """Scenes start … start + n − 1 of a seed."""
    made = [render(seed, start + i, resolution) for i in range(n)]
    images = rearrange(torch.from_numpy(np.stack([scene.image for scene in made])), "n h w c -> n c h w").contiguous()
    return Scenes(images, [scene.text for scene in made], made)


def write_scenes(folder: str | Path, n: int, *, seed: int = 0, resolution: int = 32, held_out: float = 0.15) -> None:
    """Write scenes as a folder with captions.jsonl and images/; the folder appears only when it is complete.

    Raises FileExistsError if the folder exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: give a new folder")
    partial = folder.with_name(f".{folder.name}.{uuid4().hex[:12]}.partial")
    (partial / "images").mkdir(parents=True)
    try:
        _write_scenes(partial, n, seed, resolution, held_out)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # made above, under a fresh name
        raise


def _write_scenes(partial: Path, n: int, seed: int, resolution: int, held_out: float) -> None:
    with (partial / "captions.jsonl").open("w", encoding="utf-8") as table:
        for i in range(n):
            scene, name = render(seed, i, resolution), f"scene_{i:06}.png"
            Image.fromarray(scene.image).save(partial / "images" / name)
            split = "val" if i >= n - round(held_out * n) else "train"
            row = {
                "image": name, "long_text": scene.text, "captions": [scene.caption, scene.text], "boxes": scene.boxes,
                "qa": scene.qa, "split": split, "source": "scenes",
            }  # fmt: skip
            table.write(json.dumps(row) + "\n")


def _draw_objects(draw: random.Random) -> tuple[SceneObject, ...]:
    """Two to five objects that hardly overlap; no two have the same colour and shape."""
    wanted, objects = draw.randint(2, 5), list[SceneObject]()
    for _ in range(200):
        size = draw.choice(list(SIZES))
        r = SIZES[size]
        item = SceneObject(
            draw.choice(SHAPES), draw.choice(list(COLOURS)), draw.choice(TEXTURES), size,
            round(draw.uniform(r, 1 - r), 3), round(draw.uniform(r, 1 - r), 3),
        )  # fmt: skip
        separate = all(
            max(abs(item.x - other.x), abs(item.y - other.y)) > 0.9 * (item.radius + other.radius)
            and (item.colour, item.shape) != (other.colour, other.shape)
            for other in objects
        )
        if separate:
            objects.append(item)
        if len(objects) == wanted:
            break
    return tuple(objects)


def _gradient_background(colour: Sequence[int], side: int) -> Image.Image:
    """A soft gradient, darker towards the bottom."""
    shade = np.linspace(1.06, 0.86, side)[:, None, None]
    return Image.fromarray((np.array(colour) * shade).clip(0, 255).astype(np.uint8).repeat(side, axis=1))


def _stencil(item: SceneObject, side: int) -> Image.Image:
    """A mask of the object's shape: 255 inside, 0 outside."""
    stencil = Image.new("L", (side, side))
    pen, r = ImageDraw.Draw(stencil), item.radius * side
    cx, cy = item.x * side, item.y * side
    if item.shape in ("circle", "ring"):
        pen.ellipse([value * side for value in item.box], fill=255)
        if item.shape == "ring":
            pen.ellipse((cx - 0.5 * r, cy - 0.5 * r, cx + 0.5 * r, cy + 0.5 * r), fill=0)
    elif item.shape == "square":
        pen.rectangle((cx - 0.9 * r, cy - 0.9 * r, cx + 0.9 * r, cy + 0.9 * r), fill=255)
    elif item.shape == "triangle":
        pen.polygon([(cx, cy - r), (cx + r, cy + r), (cx - r, cy + r)], fill=255)
    elif item.shape == "cross":
        pen.rectangle((cx - r, cy - 0.35 * r, cx + r, cy + 0.35 * r), fill=255)
        pen.rectangle((cx - 0.35 * r, cy - r, cx + 0.35 * r, cy + r), fill=255)
    else:
        angles = np.pi * (np.arange(10) / 5 - 0.5)
        reach = np.where(np.arange(10) % 2 == 0, r, 0.45 * r)
        pen.polygon(list(zip(cx + reach * np.cos(angles), cy + reach * np.sin(angles), strict=True)), fill=255)
    return stencil


def _fill(item: SceneObject, side: int) -> Image.Image:
    """The item's colour with its texture in a second tone, over the whole canvas."""
    colour = np.array(COLOURS[item.colour])
    tone = colour * 0.45 if colour.sum() > 300 else colour + (255 - colour) * 0.55
    fill = Image.new("RGB", (side, side), tuple(int(v) for v in colour))
    if item.texture == "plain":
        return fill
    y, x = np.mgrid[:side, :side]
    step = side / 11
    u, v = x / step, y / step
    if item.texture == "striped":
        on = (u + v) % 1.4 < 0.7
    elif item.texture == "dotted":
        on = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.09
    else:
        on = (u.astype(int) + v.astype(int)) % 2 == 0
    pattern = Image.new("RGB", (side, side), tuple(int(value) for value in tone))
    return Image.composite(pattern, fill, Image.fromarray((on * 255).astype(np.uint8)))
