"use strict";
// The codes of an image at every level: alike codes have alike colours.

const coloursOf = level => content.levels[level].unpacked ??= unpack(content.levels[level].colours);
const rgb = (colours, code) => `rgb(${colours[3 * code]} ${colours[3 * code + 1]} ${colours[3 * code + 2]})`;

views.maps = async (parts, keys) => {
  const at = clamped(parts[0], content.images.length), open = i => go("maps", i + 1);
  keys.n = () => open(Math.min(at + 1, content.images.length - 1));
  keys.p = () => open(Math.max(at - 1, 0));
  const maps = await Promise.all(content.levels.map((level, i) => codeMap(at, i)));
  return [
    el("h2", {}, `Code maps of image ${at + 1} of ${content.images.length}`), imageStrip(at, open),
    el("p", {class: "small"}, "Codes whose vectors are alike have colours that are alike: lightness is the first of the two directions in which the codebook varies most, and blue to yellow the second."),
    el("div", {class: "grid"},
      el("figure", {}, el("div", {class: "stack"}, spriteImage(content.sprite, at, altOf(at))), el("figcaption", {}, "The image")),
      maps),
  ];
};

async function codeMap(at, level) {
  const {height, width, number: levelNumber} = content.levels[level];
  const codes = await unpack(content.images[at].codes[level]), colours = await coloursOf(level);
  const distinct = new Set(codes).size;
  const map = el("canvas", {width, height, class: "pixels", role: "img",
    "aria-label": `Codes of image ${at + 1} at level ${levelNumber}: ${distinct} different codes at ${codes.length} places`});
  const cursor = el("div", {class: "place", hidden: true});
  const said = el("div", {class: "small", "aria-live": "polite"}, `${distinct} different codes at ${codes.length} places`);
  const stack = el("div", {class: "stack", tabindex: 0, role: "application", "aria-label": `Code map of level ${levelNumber}: arrow keys choose a place`}, map, cursor);
  const brush = map.getContext("2d");
  const draw = chosen => {
    const pixels = brush.createImageData(width, height);
    codes.forEach((code, i) => pixels.data.set([0, 1, 2].map(part => colours[3 * code + part])
      .concat(chosen === null || chosen === code ? 255 : 70), 4 * i));
    brush.putImageData(pixels, 0, 0);
  };
  let place = null;
  const pointAt = next => {
    place = next;
    const code = codes[place], same = codes.reduce((sum, other) => sum + (other === code), 0);
    cursor.hidden = false;
    Object.assign(cursor.style, {left: `${100 * (place % width) / width}%`, top: `${100 * Math.floor(place / width) / height}%`,
      width: `${100 / width}%`, height: `${100 / height}%`});
    said.replaceChildren(el("a", {href: `#codes/${levelNumber}/${code}`}, `Code ${code}`),
      ` at ${same} of ${codes.length} places: ${wordsInShort(level, code)}`);
    draw(code);
  };
  onPlaces(stack, width, height, () => place, pointAt, () => go("codes", levelNumber, codes[place]));
  draw(null);
  return el("figure", {}, stack, el("figcaption", {}, `Level ${levelNumber}, ${height} × ${width}`), said,
    tableBehind("Table of the codes", () => table(`Codes of image ${at + 1} at level ${levelNumber}`,
      ["row", ...Array.from({length: width}, (_, i) => i + 1)],
      Array.from({length: height}, (_, row) => [String(row + 1), ...codes.slice(row * width, (row + 1) * width)].map(String)))));
}

/** The words of a code that are above chance, as one line. */
function wordsInShort(level, code) {
  const card = content.cards[level].cards.find(one => one.code === code);
  const words = card ? card.words.filter(word => word[5]).slice(0, 3).map(word => word[0]) : [];
  return words.join(", ") || "no word above chance";
}
