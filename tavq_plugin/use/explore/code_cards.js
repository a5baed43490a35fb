"use strict";
// A card per code: patches, words with their evidence and what chance gives, use, neighbours, the code in other runs.
const AT_ONCE = 24;  // cards on a page of the list

const levelOf = text => Math.max(0, content.levels.findIndex(level => String(level.number) === text));

views.codes = async (parts, keys) => {
  const level = levelOf(parts[0]), {cards, left_out, above_chance} = content.cards[level], levelNumber = content.levels[level].number;
  const wanted = parts[1] === "page" ? null : parts[1];
  content.levels.forEach((one, i) => { keys[String(one.number)] = () => go("codes", one.number, ...(wanted === undefined ? [] : parts.slice(1))) });
  const levels = levelButtons(level, l => go("codes", content.levels[l].number));
  if (wanted !== null && wanted !== undefined) {
    const at = cards.findIndex(card => String(card.code) === wanted);
    if (at < 0) return [el("h2", {}, `Code ${wanted} of level ${levelNumber}`), levels,
      el("p", {}, `No card: none of the ${content.evidence} images has this code at this level, or ${left_out} less used codes were left out.`),
      el("p", {}, el("a", {href: `#codes/${levelNumber}`}, "All codes of this level"))];
    keys.n = () => go("codes", levelNumber, cards[Math.min(at + 1, cards.length - 1)].code);
    keys.p = () => go("codes", levelNumber, cards[Math.max(at - 1, 0)].code);
    return [el("h2", {}, `Code ${wanted} of level ${levelNumber}`), levels, evidenceLine(), await wholeCard(level, cards[at], at),
      el("p", {}, el("a", {href: `#codes/${levelNumber}`}, "All codes of this level"))];
  }
  const pages = Math.ceil(cards.length / AT_ONCE), page = parts[1] === "page" ? clamped(parts[2], pages) : 0;
  const turn = step => go("codes", levelNumber, "page", Math.min(pages, Math.max(1, page + 1 + step)));
  keys.n = () => turn(1);
  keys.p = () => turn(-1);
  const colours = await coloursOf(level);
  return [
    el("h2", {}, `Codes of level ${levelNumber}`), levels,
    el("p", {}, `${content.levels[level].used} of ${content.levels[level].codes} codes are used; ${above_chance} of them have a word above chance.`,
      left_out ? ` The ${left_out} least used ones have no card.` : ""), evidenceLine(),
    el("div", {class: "cards"}, cards.slice(page * AT_ONCE, (page + 1) * AT_ONCE).map(card => smallCard(level, card, colours))),
    el("div", {class: "row"}, el("button", {type: "button", onclick: () => turn(-1)}, "Before"),
      `page ${page + 1} of ${pages}, most used first`, el("button", {type: "button", onclick: () => turn(1)}, "Next")),
  ];
};

const evidenceLine = () => el("p", {class: "small"}, `A word's number is the pointwise mutual information (in nats) of “the code is in the image” and “the word is in its text”, over ${content.evidence} held-out images; in brackets, the 95 % quantile after the texts were dealt to other images at random. Words in grey are not above chance.`);

function patchesOf(level, card, most, size) {
  const [first, count] = card.patches;
  return el("div", {class: "patches"}, Array.from({length: Math.min(most, count)}, (_, i) =>
    spriteImage(content.cards[level].patches, first + i, `Patch ${i + 1} of ${count} of code ${card.code}`, size)));
}

function smallCard(level, card, colours) {
  const swatch = el("span", {class: "swatch"});
  swatch.style.background = rgb(colours, card.code);
  const above = card.words.filter(word => word[5]).slice(0, 4);
  return el("article", {class: "card"},
    el("h3", {}, swatch, " ", el("a", {href: `#codes/${content.levels[level].number}/${card.code}`}, `Code ${card.code}`),
      el("span", {class: "unit"}, ` ${percent(card.share)} of places, ${card.images} images`)),
    patchesOf(level, card, 6, 44),
    el("div", {}, above.length ? above.flatMap(([word, information, , , high], i) => [i ? ", " : "", word,
      el("span", {class: "unit"}, ` ${number(information)} (${number(high)})`)]) : el("span", {class: "chance"}, "no word above chance")));
}

const EVIDENCE = ["word", "information", "images with both", "chance, mean", "chance, 95 %", ""];
const evidenceRows = words => words.map(([word, information, images, chance, high, above]) =>
  [above ? word : el("span", {class: "chance"}, word), number(information), String(images), number(chance), number(high), above ? "above chance" : "not above chance"]);

async function wholeCard(level, card, rank) {
  const levelNumber = content.levels[level].number, link = code => el("a", {href: `#codes/${levelNumber}/${code}`}, String(code));
  const own = [];  // shown images with the code
  for (let i = 0; i < content.images.length; i++) {
    if ((await unpack(content.images[i].codes[level])).includes(card.code)) own.push(i);
  }
  return el("article", {class: "card"},
    el("p", {}, `${percent(card.share)} of all places, in ${card.images} of ${content.evidence} images; rank ${rank + 1} by use.`),
    el("h3", {}, "Top patches"), el("p", {class: "small"}, "The places whose latents are nearest to the code, one of each image, with what surrounds them."),
    patchesOf(level, card, 99, 72),
    card.words.length ? table(`Words of code ${card.code}`, EVIDENCE, evidenceRows(card.words)) : el("p", {}, "No word stands in two texts."),
    card.neighbours.length ? el("p", {}, "Nearest codes: ", card.neighbours.flatMap((code, i) => [i ? "; " : "", link(code),
      el("span", {class: "unit"}, ` ${wordsInShort(level, code)}`)])) : null,
    own.length ? el("p", {}, "Shown images with it: ", own.slice(0, 12).flatMap((i, n) => [n ? ", " : "", el("a", {href: `#maps/${i + 1}`}, String(i + 1))])) : null,
    card.also.map(other => [el("h3", {}, `In ${other.label}`), other.code === null
      ? el("p", {}, "That run's grid has another size, so its codes cannot be compared place by place.")
      : el("div", {}, el("p", {}, `Its code ${other.code} shares most places with this one: ${percent(other.overlap)} of the places that hold either.`),
        table(`Words of code ${other.code} of ${other.label}`, EVIDENCE, evidenceRows(other.words)))]),
    el("p", {class: "small"}, "Permalink: ", el("a", {href: `#codes/${levelNumber}/${card.code}`}, `#codes/${levelNumber}/${card.code}`)));
}

views.word = async parts => {
  const word = parts[0] ?? "";
  const known = content.cards.some(level => word in level.text_share && Object.hasOwn(level.text_share, word));
  const inImages = content.images.map((image, i) => i).filter(i => content.images[i].text.toLowerCase().includes(word));
  const near = Object.keys(content.cards[0]?.text_share ?? {}).filter(other => other.includes(word)).slice(0, 20);
  return [
    el("h2", {}, `“${word}”`),
    known ? el("p", {}, `In the texts of ${content.cards[0].text_share[word]} of ${content.evidence} images.`)
      : el("p", {}, "Too few texts hold this word to say what codes have to do with it.",
        near.length ? [" Alike words: ", near.flatMap((other, i) => [i ? ", " : "", el("a", {href: `#word/${encodeURIComponent(other)}`}, other)])] : ""),
    known ? evidenceLine() : null,
    known ? content.levels.map((level, i) => {
      const rows = Object.hasOwn(content.cards[i].words, word) ? content.cards[i].words[word] : [];
      return rows.length ? table(`Codes of “${word}” at level ${level.number}`, ["code", ...EVIDENCE.slice(1)],
        evidenceRows(rows).map(([, ...rest], n) => [el("a", {href: `#codes/${level.number}/${rows[n][0]}`}, String(rows[n][0])), ...rest]))
        : el("p", {}, `No code of level ${level.number} meets it.`);
    }) : null,
    inImages.length ? el("p", {}, "Shown images whose texts hold it: ", inImages.flatMap((i, n) => [n ? ", " : "", el("a", {href: `#images/${i + 1}/1/${encodeURIComponent(word)}`}, String(i + 1))])) : null,
  ];
};
