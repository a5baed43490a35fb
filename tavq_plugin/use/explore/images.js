"use strict";
// The held-out images, each beside its text.

views.images = async (parts, keys) => {
  const at = clamped(parts[0], content.images.length), level = clamped(parts[1], content.levels.length);
  const open = (i, l) => go("images", i + 1, content.levels[l].number);
  keys.n = () => open(Math.min(at + 1, content.images.length - 1), level);
  keys.p = () => open(Math.max(at - 1, 0), level);
  content.levels.forEach((one, i) => { keys[String(one.number)] = () => open(at, i) });
  const picture = spriteImage(content.sprite, at, altOf(at));
  return [
    el("h2", {}, `Image ${at + 1} of ${content.images.length}`), imageStrip(at, i => open(i, level)),
    levelButtons(level, l => open(at, l)),
    ...await textOnImage(content.images[at], picture, level, `image ${at + 1}`, keys, parts[2]),
  ];
};
