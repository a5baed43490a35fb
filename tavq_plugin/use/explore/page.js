"use strict";
// The content of the page, small builders of elements, and the routes: #images/3/1 is image 3 at level 1.
const content = JSON.parse(document.getElementById("content").textContent);
const views = {};  // name → function of the route's parts; it returns the elements of the view
const keys = {};  // key → function, of the view that is shown
const main = document.getElementById("main");

/** An element. Attributes that begin with "on" are listeners; children are elements or plain text, never markup. */
function el(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "circle", "line", "polyline", "rect", "text", "title"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat(9).filter(child => child !== null && child !== undefined));
  return made;
}

/** A number with three significant digits. */
const number = value => value === null ? "–" : Number(value.toPrecision(3)).toLocaleString("en", {maximumSignificantDigits: 3});
const percent = value => value === null ? "–" : `${number(100 * value)} %`;

/** Whole numbers that Python packed: low bytes, then high bytes, deflated, in base64. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const half = planes.length / 2, values = new Uint16Array(half);
  for (let i = 0; i < half; i++) values[i] = planes[i] | planes[half + i] << 8;
  return values;
}

const loaded = new Map();  // data URI → promise of its picture
function picture(uri) {
  if (!loaded.has(uri)) {
    const made = new Image();
    made.src = uri;
    loaded.set(uri, made.decode().then(() => made));
  }
  return loaded.get(uri);
}

/** A canvas with one image of a sprite; `alt` is what it shows, in words. */
function spriteImage(sprite, index, alt, size) {
  const canvas = el("canvas", {width: sprite.side, height: sprite.side, class: "pixels", role: "img", "aria-label": alt});
  if (size) canvas.style.width = canvas.style.height = `${size}px`;
  picture(sprite.uri).then(sheet => {
    const left = index % sprite.columns * sprite.side, top = Math.floor(index / sprite.columns) * sprite.side;
    canvas.getContext("2d").drawImage(sheet, left, top, sprite.side, sprite.side, 0, 0, sprite.side, sprite.side);
    canvas.dataset.drawn = "yes";
  });
  return canvas;
}

/** What a held-out image shows, in words: the first sentence of its text. */
function altOf(index) {
  const text = content.images[index].text.trim();
  const first = text.split(/(?<=[.!?])\s/)[0].slice(0, 200);
  return `Held-out image ${index + 1}: ${first || "without a text"}`;
}

/** A table with a caption; a row is a list whose first entry is its heading. */
function table(caption, heads, rows) {
  return el("div", {class: "wide", role: "region", tabindex: 0, "aria-label": caption},
    el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, heads.map(head => el("th", {scope: "col"}, head)))),
      el("tbody", {}, rows.map(([head, ...cells]) =>
        el("tr", {}, el("th", {scope: "row"}, head), cells.map(cell => el("td", {}, cell)))))));
}

/** A table behind a chart, built when it is opened. */
function tableBehind(title, build) {
  const details = el("details", {}, el("summary", {}, title));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(build());
  });
  return details;
}

/** Buttons that choose a level; `choose` gets the level's place in the content. */
function levelButtons(current, choose) {
  return el("div", {class: "row", role: "group", "aria-label": "Level"}, content.levels.map((level, i) =>
    el("button", {type: "button", "aria-pressed": String(i === current), "data-level": level.number, onclick: () => choose(i)},
      `Level ${level.number}`, level.granularity ? `: ${level.granularity}s` : "",
      el("span", {class: "unit"}, ` ${level.height} × ${level.width}`))));
}

/** The strip of all images; `choose` gets an image's place. */
function imageStrip(current, choose) {
  const buttons = content.images.map((_, i) => el("button", {
    type: "button", "aria-pressed": String(i === current), tabindex: i === current ? 0 : -1, onclick: () => choose(i),
  }, spriteImage(content.sprite, i, altOf(i), 48)));
  const strip = el("div", {class: "strip", role: "group", "aria-label": "Images"}, buttons);
  strip.addEventListener("keydown", event => moveFocus(event, buttons));
  return strip;
}

/** Arrow keys among buttons of which one can be reached by Tab. */
function moveFocus(event, buttons) {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  const at = buttons.indexOf(document.activeElement);
  if (!step || at < 0) return;
  event.preventDefault();
  const next = buttons[(at + step + buttons.length) % buttons.length];
  buttons.forEach(button => { button.tabIndex = button === next ? 0 : -1 });
  next.focus();
}

const clamped = (text, length) => Math.max(0, Math.min(length - 1, (parseInt(text, 10) || 1) - 1));
const go = (...parts) => { location.hash = parts.map(encodeURIComponent).join("/") };

let drawing = 0;  // the latest route; a slower, earlier one is dropped
async function route() {
  const mine = ++drawing;
  const parts = location.hash.slice(1).split("/").map(part => { try { return decodeURIComponent(part) } catch { return "" } });
  const view = views[parts[0]] ? parts[0] : Object.keys(views)[0];
  const own = {};
  const made = await views[view](parts.slice(1), own);
  if (mine !== drawing) return;
  Object.keys(keys).forEach(key => delete keys[key]);
  Object.assign(keys, own);
  const focused = document.activeElement?.dataset?.level;  // stay on a level's button when the level changes
  main.replaceChildren(...made.flat(9).filter(part => part));
  if (focused) main.querySelector(`button[data-level="${CSS.escape(focused)}"]`)?.focus();
  document.querySelectorAll("nav a").forEach(link => {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  document.querySelectorAll(".strip [aria-pressed=true]").forEach(button => {
    const strip = button.parentElement;
    strip.scrollLeft = button.offsetLeft - strip.offsetLeft - strip.clientWidth / 2;
  });
  main.dataset.route = location.hash;
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const writing = event.target.closest?.("input, textarea, select");
  if (event.key === "Escape" && writing) writing.blur();
  else if (event.key === "/" && !writing) { event.preventDefault(); document.getElementById("word").focus() }
  else if (!writing && keys[event.key]) { event.preventDefault(); keys[event.key]() }
});
addEventListener("hashchange", route);
