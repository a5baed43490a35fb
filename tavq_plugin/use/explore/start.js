"use strict";
// The search, and the first view; the last script, so that every view is known.
document.getElementById("words").append(...[...new Set(content.cards.flatMap(level => Object.keys(level.words)))].slice(0, 400)
  .map(word => el("option", {value: word})));
document.getElementById("search").addEventListener("submit", event => {
  event.preventDefault();
  const word = document.getElementById("word").value.trim().toLowerCase();
  if (word) go("word", word);
});
route();
