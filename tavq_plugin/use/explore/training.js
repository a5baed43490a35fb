"use strict";
// Curves and health over training: one chart per quantity, a line per run and level, dashes beside colours.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];  // Okabe and Ito
const DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 2", "10 4"];

views.training = async () => {
  const missing = content.training.filter(run => run.missing);
  const titles = [...new Set(content.training.flatMap(run => run.charts.map(chart => chart.title)))];
  const many = content.training.filter(run => !run.missing).length > 1;
  const charts = titles.map(title => curveChart(title, content.training.flatMap(run => run.charts.filter(chart => chart.title === title)
    .flatMap(chart => chart.lines.map(line => ({...line, name: many ? `${line.name}, ${run.label}` : line.name}))))));
  return [el("h2", {}, "Training"), missing.map(run => el("p", {}, `${run.label}: ${run.missing}`)),
    charts.length ? el("p", {class: "small"}, "Each point is the mean of an interval of steps.") : null,
    el("div", {class: "grid"}, charts),
    el("h3", {}, "Use of the codebook now"), table(`On ${content.evidence} held-out images`, ["level", "grid", "codes", "used", "share used", "with a word above chance"],
      content.levels.map((level, i) => [String(level.number), `${level.height} × ${level.width}`, String(level.codes), String(level.used), percent(level.used / level.codes), String(content.cards[i].above_chance)]))];
};

function curveChart(title, lines) {
  const drawn = lines.filter(line => line.values.length), width = 340, height = 190, left = 52, bottom = 24;
  const all = drawn.flatMap(line => line.values), steps = drawn.flatMap(line => line.steps);
  const low = Math.min(...all), high = Math.max(...all), first = Math.min(...steps), last = Math.max(...steps);
  const x = step => left + (step - first) / Math.max(1e-9, last - first) * (width - left - 8);
  const y = value => 8 + (high - value) / Math.max(1e-12, high - low) * (height - bottom - 16);
  const style = i => ({stroke: COLOURS[i % 6], "stroke-dasharray": DASHES[Math.floor(i / 6) % 6] || DASHES[i % 3], "stroke-width": 1.8, fill: "none"});
  const label = (attributes, text) => el("text", attributes, text);
  const svg = el("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}, from step ${first} to ${last}: ${drawn.map(line => `${line.name} from ${number(line.values[0])} to ${number(line.values.at(-1))}`).join("; ")}`},
    el("line", {class: "axis", x1: left, x2: left, y1: 8, y2: height - bottom}), el("line", {class: "axis", x1: left, x2: width - 8, y1: height - bottom, y2: height - bottom}),
    label({x: left - 4, y: 16, "text-anchor": "end"}, number(high)), label({x: left - 4, y: height - bottom, "text-anchor": "end"}, number(low)),
    label({x: left, y: height - 8}, number(first)), label({x: width - 8, y: height - 8, "text-anchor": "end"}, `step ${number(last)}`),
    drawn.map((line, i) => line.values.length > 1 ? el("polyline", {...style(i), points: line.values.map((value, j) => `${x(line.steps[j]).toFixed(1)},${y(value).toFixed(1)}`).join(" ")})
      : el("circle", {cx: x(line.steps[0]), cy: y(line.values[0]), r: 3, fill: COLOURS[i % 6]})));
  const left_out = lines.reduce((sum, line) => sum + line.left_out, 0);
  return el("figure", {}, el("h3", {}, title), drawn.length ? svg : el("p", {}, "No finite value."),
    el("figcaption", {}, drawn.map((line, i) => el("div", {}, el("svg", {viewBox: "0 0 24 8", width: 24, height: 8, "aria-hidden": "true", class: "key"}, el("line", {x1: 0, x2: 24, y1: 4, y2: 4, ...style(i)})), line.name)),
      left_out ? `${left_out} values were not finite and are left out.` : null),
    tableBehind("Table", () => table(title, ["step", ...drawn.map(line => line.name)],
      [...new Set(steps)].sort((a, b) => a - b).map(step => [String(step), ...drawn.map(line => { const j = line.steps.indexOf(step); return j < 0 ? "–" : number(line.values[j]) })]))));
}
