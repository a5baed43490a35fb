"use strict";
// A text on an image: the mass of a word, phrase or sentence lights up, and a place ranks the units.
const HEAT = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
const HIDDEN = [0.55, 0.9];  // how much the map hides the image, where it has no mass and at its peak
const shown = {heat: null, unit: null, place: null};  // what is lit now; heat is one mass per place

/** The colour of a value from 0 to 1: dark to bright, grey for maps that are near uniform. */
function heatColour(value, flat) {
  const at = Math.min(1, Math.max(0, value)) * (HEAT.length - 1), low = Math.min(HEAT.length - 2, Math.floor(at));
  const mixed = HEAT[low].map((part, i) => part + (at - low) * (HEAT[low + 1][i] - part));
  return flat ? [0, 1, 2].map(() => 40 + 160 * value) : mixed;
}

function paint(canvas, values, peak, flat) {
  const brush = canvas.getContext("2d"), pixels = brush.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < values.length; i++) {
    const value = values[i] / peak;
    pixels.data.set([...heatColour(value, flat), 255 * (HIDDEN[0] + value * (HIDDEN[1] - HIDDEN[0]))], 4 * i);
  }
  brush.putImageData(pixels, 0, 0);
}

/** The masses of a plan's units at a level, m × places. */
async function massesOf(plan, level) {
  const {height, width} = content.levels[level], places = height * width;
  const packed = await unpack(plan.masses);
  return plan.units.map((unit, m) => {
    const peak = unit.peak * unit.mass / places;
    return Float64Array.from(packed.subarray(m * places, (m + 1) * places), value => peak * value / 65535);
  });
}

/** The text with its units as buttons; units that overlap an earlier one come in a list below. */
function textWithUnits(text, units, button) {
  const order = units.map((unit, i) => i).filter(i => units[i].span)
    .sort((a, b) => units[a].span[0] - units[b].span[0] || units[b].span[1] - units[a].span[1]);
  const parts = [], inline = new Set();
  let end = 0;
  const letters = [...text];  // Python counts code points
  for (const i of order) {
    const [from, to] = units[i].span;
    if (from < end) continue;
    parts.push(letters.slice(end, from).join(""), button(i, letters.slice(from, to).join("")));
    inline.add(i);
    end = to;
  }
  parts.push(letters.slice(end).join(""));
  const rest = units.map((unit, i) => i).filter(i => !inline.has(i)).map(i => button(i, units[i].text));
  return [el("p", {class: "text"}, parts), rest.length
    ? el("p", {class: "units"}, el("span", {class: "small"}, "Inside these:"), rest) : null];
}

/**
 * The elements of an image beside its text, at a level. `image` has text, codes and plans, `picture` is its canvas and
 * `name` what tables call it; `wanted` is the unit that is kept lit from the start, if any.
 */
async function textOnImage(image, picture, level, name, keys, wanted) {
  const {height, width, number: levelNumber, granularity} = content.levels[level];
  const plan = image.plans[level], units = plan?.units ?? [];
  const masses = plan ? await massesOf(plan, level) : [];
  const codes = await unpack(image.codes[level]);
  Object.assign(shown, {heat: null, unit: null, place: null});
  let kept = null;  // the unit that stays lit

  const heat = el("canvas", {width, height, class: "pixels", role: "img", "aria-label": "No unit is lit", id: "heat"});
  const cursor = el("div", {class: "place", hidden: true});
  const stack = el("div", {class: "stack", tabindex: 0, role: "application", "aria-label": `Places of level ${levelNumber}: arrow keys choose one`}, picture, heat, cursor);
  const scale = el("canvas", {width: 64, height: 1, class: "pixels", role: "img", "aria-label": "Colour scale from no mass to the peak"});
  const peakLabel = el("span", {class: "small"}, "peak");
  const figures = el("div", {class: "figures", "aria-live": "polite"});
  const ranking = el("div", {class: "ranking", "aria-live": "polite"});
  paint(scale, Array.from({length: 64}, (_, i) => i), 63, false);
  const isFlat = i => units[i].entropy >= content.near_uniform;

  const buttons = [];
  const button = (i, label) => buttons[i] = el("button", {
    type: "button", class: isFlat(i) ? "flat" : null, tabindex: -1, "data-unit": i,
    title: isFlat(i) ? "near uniform: this map says next to nothing" : null,
    onfocus: () => light(i), onblur: () => light(kept), onclick: () => { kept = kept === i ? null : i; light(i) },
  }, label);
  const text = plan ? textWithUnits(image.text, units, button) : [el("p", {class: "text"}, image.text || "This image has no text.")];
  const inOrder = text.flatMap(part => part ? [...part.querySelectorAll("button")] : []);
  if (inOrder.length) inOrder[0].tabIndex = 0;
  const reading = el("div", {id: "units"}, text);
  reading.addEventListener("keydown", event => moveFocus(event, inOrder));
  reading.addEventListener("pointerover", event => {
    const over = event.target.closest("button");
    if (over) light(Number(over.dataset.unit));
  });
  reading.addEventListener("pointerout", event => { if (event.target.closest("button")) light(kept) });

  function light(i) {
    buttons.forEach((one, j) => { one.classList.toggle("lit", j === i); one.setAttribute("aria-pressed", String(j === kept)) });
    heat.hidden = i === null;
    shown.unit = i;
    shown.heat = i === null ? null : masses[i];
    if (i === null) {
      figures.replaceChildren(el("p", {class: "small"}, units.length
        ? `Point at a ${granularity}, or reach it with Tab and the arrow keys.` : "No unit of this text can be lit."));
      heat.setAttribute("aria-label", "No unit is lit");
      return;
    }
    const unit = units[i], peak = unit.peak * unit.mass / (height * width), best = masses[i].indexOf(Math.max(...masses[i]));
    paint(heat, masses[i], peak, isFlat(i));
    const where = `row ${Math.floor(best / width) + 1}, column ${best % width + 1}`;
    heat.setAttribute("aria-label", `Map of “${unit.text}”: its peak, ${number(unit.peak)} times the mean, is at ${where} of ${height} × ${width}`);
    peakLabel.textContent = `${number(unit.peak)} × the mean`;
    figures.replaceChildren(el("b", {}, unit.text), el("div", {class: "small"},
      `mass ${percent(unit.mass)} · ${percent(unit.entropy)} of the maximum entropy · rank ${unit.rank} of ${units.length} by concentration`),
      isFlat(i) ? el("div", {class: "small"}, "Near uniform: this map says next to nothing.") : "");
    if (tableOfMap.open) fillTable();
  }

  function pointAt(place) {
    shown.place = place;
    const column = place % width, row = Math.floor(place / width);
    cursor.hidden = false;
    Object.assign(cursor.style, {
      left: `${100 * column / width}%`, top: `${100 * row / height}%`, width: `${100 / width}%`, height: `${100 / height}%`,
    });
    const code = codes[place], total = masses.reduce((sum, mass) => sum + mass[place], 0);
    const rows = units.map((unit, i) => [unit.text, masses[i][place] / total, unit.mass]).sort((a, b) => b[1] - a[1]);
    ranking.replaceChildren(
      el("div", {}, el("b", {}, "Code ", el("a", {href: `#codes/${levelNumber}/${code}`}, String(code))),
        el("span", {class: "small"}, ` at row ${row + 1}, column ${column + 1}`,
          rows.length ? `: where its mass goes, and each unit's share of all mass in brackets` : "")),
      el("div", {class: "small"}, `Words of this code by the held-out images: ${wordsInShort(level, code)}`),
      bars(rows.slice(0, 8).map(([name, share, all]) => [name, share, `${percent(share)} (${percent(all)})`])));
  }
  onPlaces(stack, width, height, () => shown.place, pointAt, () => go("codes", levelNumber, codes[shown.place]));

  const mapPlace = el("div");
  const tableOfMap = el("details", {}, el("summary", {}, "Table of the map that is lit"), mapPlace);
  const fillTable = () => mapPlace.replaceChildren(shown.unit === null ? el("p", {class: "small"}, "No unit is lit.")
    : table(`Mass of “${units[shown.unit].text}” at each place, as a multiple of its mean`, ["row", ...Array.from({length: width}, (_, i) => i + 1)],
      Array.from({length: height}, (_, row) => [String(row + 1), ...Array.from({length: width}, (_, column) =>
        number(masses[shown.unit][row * width + column] / (units[shown.unit].mass / (height * width))))])));
  tableOfMap.addEventListener("toggle", () => { if (tableOfMap.open) fillTable() });

  const flat = units.filter((_, i) => isFlat(i)).length;
  const said = content.no_plans ? [el("p", {class: "small"}, content.no_plans)] : [
    el("p", {class: "small"}, plan.entropy === null ? "This text has no units at this level."
      : `A place's plan over the ${units.length} units has ${percent(plan.entropy)} of the maximum entropy.`,
      flat ? ` ${flat} of ${units.length} maps have at least ${percent(content.near_uniform)} of the maximum entropy: they are near uniform, and greyed.` : "")];
  keys.Escape = () => { kept = null; light(null) };
  ranking.append(el("p", {class: "small"}, "Point at a place of the image, or reach it with Tab and the arrow keys, to see its code and rank its units."));
  light(null);
  const start = units.findIndex(unit => unit.text === wanted);
  if (start >= 0) { kept = start; light(start) }
  return [
    ...said,
    el("div", {class: "columns"},
      el("div", {class: "seen"}, stack, el("div", {class: "scale"}, el("span", {class: "small"}, "0"), scale, peakLabel), figures),
      el("div", {}, reading,
        units.length ? tableBehind("Table of the units", () => table(`Units of ${name} at level ${levelNumber}`,
          [granularity, "mass", "share of the maximum entropy", "peak, × the mean", "rank"],
          units.map(unit => [unit.text, percent(unit.mass), percent(unit.entropy), number(unit.peak), unit.rank]))) : null,
        units.length ? tableOfMap : null,
        el("h3", {}, "A place of the image"), ranking)),
  ];
}

/** Horizontal bars; each row is a name, a value from 0 to 1 and a label. */
function bars(rows) {
  const most = Math.max(1e-9, ...rows.map(row => row[1]));
  return el("div", {class: "bars", role: "list"}, rows.flatMap(([name, value, label]) => {
    const bar = el("i");
    bar.style.width = `${100 * value / most}%`;
    return [el("span", {}, name), el("span", {}, bar), el("span", {}, label)];
  }));
}

/** Pointer and arrow keys choose a place of a grid; a click or Enter opens it. */
function onPlaces(stack, width, height, current, choose, open) {
  stack.addEventListener("pointermove", event => {
    const box = stack.getBoundingClientRect();
    const column = Math.min(width - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * width)));
    const row = Math.min(height - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * height)));
    if (row * width + column !== current()) choose(row * width + column);
  });
  stack.addEventListener("click", () => { if (current() !== null) open() });
  stack.addEventListener("keydown", event => {
    if (event.key === "Enter" && current() !== null) open();
    const [down, right] = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key] ?? [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    const from = current() ?? 0, row = Math.min(height - 1, Math.max(0, Math.floor(from / width) + down));
    choose(row * width + Math.min(width - 1, Math.max(0, from % width + right)));
  });
}
