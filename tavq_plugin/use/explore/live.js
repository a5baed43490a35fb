"use strict";
// An image and a sentence of the user's: the server that sent this page makes the same content of them.
const own = {result: null, text: "", level: 0};  // kept while other views are shown
const MOST_BYTES = 20e6;  // of an image file; the server's own bound is higher by the size of its encoding

const asBase64 = file => new Promise((made, failed) => {
  const reader = new FileReader();
  reader.onload = () => made(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => failed(reader.error);
  reader.readAsDataURL(file);
});

/** What the server says of an image file and a text; throws an Error with the server's own words. */
async function grounded(file, text) {
  if (file.size > MOST_BYTES) throw new Error(`The file has ${number(file.size / 1e6)} MB, and at most ${MOST_BYTES / 1e6} are read: shrink the image.`);
  const answer = await fetch("/ground", {method: "POST", headers: {"Content-Type": "application/json"},
    body: JSON.stringify({text, image: await asBase64(file)})});
  const said = await answer.json();
  if (said.error) throw new Error(said.error);
  return said;
}

views.live = async (parts, keys) => {
  const level = own.level = parts[0] ? clamped(parts[0], content.levels.length) : own.level;
  const choose = l => go("live", content.levels[l].number);
  content.levels.forEach((one, i) => { keys[String(one.number)] = () => choose(i) });
  const file = el("input", {type: "file", accept: "image/*", id: "own-image"});
  const text = el("textarea", {id: "own-text", rows: 3, maxlength: 5000});
  text.value = own.text;
  const told = el("p", {role: "status"}), button = el("button", {}, "Show");
  const form = el("form", {id: "own"}, el("label", {for: "own-image"}, "Image"), file,
    el("label", {for: "own-text"}, "Text, in English"), text, button);
  form.addEventListener("submit", async event => {
    event.preventDefault();
    own.text = text.value;
    if (!file.files.length || !own.text.trim()) { told.textContent = "Give an image and a text."; return }
    button.disabled = true;
    told.textContent = "In work …";
    try {
      own.result = await grounded(file.files[0], own.text);
      own.file = file.files[0].name;
      told.textContent = "";
      await fill();
    } catch (error) {
      told.textContent = error.message;
    }
    button.disabled = false;
  });
  const place = el("div", {id: "own-result"});
  const fill = async () => {
    const {result} = own;
    const picture = spriteImage(result.sprite, 0, `Your image ${own.file}: ${result.text.slice(0, 200)}`);
    place.replaceChildren(...[el("p", {class: "small"}, result.sized), levelButtons(level, choose),
      ...await textOnImage(result, picture, level, "your image", keys)].flat(9).filter(part => part));
  };
  if (own.result) await fill();
  return [el("h2", {}, "An image and a text of your own"),
    el("p", {class: "small"}, "They go to the program that you started on this machine, and nowhere else. Nothing is kept."), form, told, place];
};
