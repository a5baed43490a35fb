"use strict";
// Original, reconstruction and error of each run; errors are drawn on one scale for all runs and images.

views.reconstructions = async (parts, keys) => {
  const at = clamped(parts[0], content.images.length), open = i => go("reconstructions", i + 1);
  keys.n = () => open(Math.min(at + 1, content.images.length - 1));
  keys.p = () => open(Math.max(at - 1, 0));
  const able = content.runs.filter(run => !run.missing);
  const mean = run => run.psnr.reduce((sum, value) => sum + value, 0) / run.psnr.length;
  const figure = (canvas, caption) => el("figure", {}, el("div", {class: "stack"}, canvas), el("figcaption", {}, caption));
  const error = run => {
    const canvas = el("canvas", {width: run.errors.side, height: run.errors.side, class: "pixels", role: "img",
      "aria-label": `Error of ${run.label} at image ${at + 1}: PSNR ${number(run.psnr[at])} dB`});
    picture(run.errors.uri).then(sheet => {
      const side = run.errors.side, copy = new OffscreenCanvas(side, side), brush = copy.getContext("2d", {willReadFrequently: true});
      brush.drawImage(sheet, at % run.errors.columns * side, Math.floor(at / run.errors.columns) * side, side, side, 0, 0, side, side);
      const pixels = brush.getImageData(0, 0, side, side);
      for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set([...heatColour(pixels.data[i] / 64, false), 255], i);
      canvas.getContext("2d").putImageData(pixels, 0, 0);
    });
    return canvas;
  };
  return [
    el("h2", {}, `Reconstructions of image ${at + 1} of ${content.images.length}`), imageStrip(at, open),
    el("div", {class: "side"}, figure(spriteImage(content.sprite, at, altOf(at)), "Original")),
    content.runs.map(run => [el("h3", {}, run.label), run.missing ? el("p", {}, `No reconstructions: ${run.missing}`)
      : el("div", {class: "side"},
        figure(spriteImage(run.images, at, `Reconstruction by ${run.label} of image ${at + 1}, PSNR ${number(run.psnr[at])} dB`), `Reconstruction, PSNR ${number(run.psnr[at])} dB`),
        figure(error(run), "Absolute error, mean over the colours: dark is 0, bright is 64 of 255 or more"))]),
    able.length ? tableBehind("Table of PSNR", () => table("PSNR in dB, of 8-bit pixels", ["image", ...able.map(run => run.label)],
      [["mean", ...able.map(run => mean(run).toFixed(2))], ...content.images.map((_, i) => [String(i + 1), ...able.map(run => run.psnr[i].toFixed(2))])])) : null,
  ];
};
