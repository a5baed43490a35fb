"use strict";
// The codebook in two dimensions: a circle per used code, as large as its use, with its word.
const DRAWN = 1500, LABELS = 70;

views.codebook = async (parts, keys) => {
  const level = levelOf(parts[0]), {plane, number: levelNumber} = content.levels[level];
  content.levels.forEach(one => { keys[String(one.number)] = () => go("codebook", one.number) });
  const head = [el("h2", {}, `Codebook of level ${levelNumber} in two dimensions`), levelButtons(level, l => go("codebook", content.levels[l].number))];
  if (!plane) return [...head, el("p", {}, "This host shows no codebook, so its codes have no vectors to draw.")];
  const cards = content.cards[level].cards.slice(0, DRAWN), colours = await coloursOf(level);
  const most = Math.max(...cards.map(card => card.share)), width = 960, height = 620;
  const x = code => 20 + (plane.points[code][0] - low[0]) / span[0] * (width - 40);
  const y = code => 20 + (plane.points[code][1] - low[1]) / span[1] * (height - 40);
  const sides = [0, 1].map(axis => cards.map(card => plane.points[card.code][axis]));
  const low = sides.map(side => Math.min(...side)), span = sides.map((side, i) => Math.max(1e-9, Math.max(...side) - low[i]));
  const named = card => card.words.find(word => word[5]);
  const said = el("div", {class: "figures", "aria-live": "polite"}, el("p", {class: "small"}, "Point at a code, or reach the codes with Tab and the arrow keys; Enter opens a card."));
  const tell = card => said.replaceChildren(el("b", {}, `Code ${card.code}`), el("div", {class: "small"}, `${percent(card.share)} of places: ${wordsInShort(level, card.code)}`));
  const circles = cards.map((card, i) => {
    const made = el("circle", {cx: x(card.code).toFixed(1), cy: y(card.code).toFixed(1), r: (2.5 + 9 * Math.sqrt(card.share / most)).toFixed(1),
      fill: rgb(colours, card.code), stroke: "currentColor", "stroke-width": named(card) ? 1.2 : .4, tabindex: i ? -1 : 0, role: "link",
      "data-code": card.code, "aria-label": `Code ${card.code}: ${wordsInShort(level, card.code)}`,
      onpointerenter: () => tell(card), onfocus: () => tell(card), onclick: () => go("codes", levelNumber, card.code),
      onkeydown: event => { if (event.key === "Enter") go("codes", levelNumber, card.code) }});
    return made;
  });
  const taken = [], labels = [];
  for (const card of cards.filter(named)) {  // most used first; a label that would cover another is left out
    const word = named(card)[0].slice(0, 18), right = x(card.code) > width - 90;
    const left = x(card.code) + (right ? -7 * word.length - 6 : 6), top = y(card.code);
    if (labels.length >= LABELS || taken.some(([l, t, w]) => left < l + w && l < left + 7 * word.length && Math.abs(top - t) < 13)) continue;
    taken.push([left, top, 7 * word.length]);
    labels.push(el("text", {x: left.toFixed(1), y: (top + 4).toFixed(1), class: "halo", "pointer-events": "none", "aria-hidden": "true"}, word));
  }
  const svg = el("svg", {viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `Map of ${cards.length} codes of level ${levelNumber}`}, circles, labels);
  svg.addEventListener("keydown", event => moveFocus(event, circles));
  const without = cards.filter(card => !named(card)).length;
  return [...head,
    el("p", {class: "small"}, `Principal components of the vectors of the used codes; they hold ${percent(plane.explained)} of the variance. A circle's area is the code's use. The word is the code's best one above chance; ${without} of ${cards.length} codes have none, and where words would overlap, that of the more used code is written.`),
    svg, said,
    tableBehind("Table of the map", () => table(`Codes of level ${levelNumber}`, ["code", "first direction", "second direction", "share of places", "word"],
      cards.map(card => [el("a", {href: `#codes/${levelNumber}/${card.code}`}, String(card.code)), ...plane.points[card.code].map(number), percent(card.share), named(card)?.[0] ?? "–"])))];
};
