"use strict";
// The page of `bench compare --html`. The table works at once; charts wait for Plotly, which stands after this script.
// What users named reaches the page as text only: textContent, or escaped for Plotly, which reads tags in its labels.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const MAX_COLORED = 6, MAX_ROWS_AT_FIRST = 12;
const COLORS = ["#0072b2", "#e08a00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]; // Okabe and Ito's
const COLORS_ON_DARK = ["#56b4e9", "#f0b040", "#35c79c", "#e39ac3", "#f0e442", "#ff7f3f"];
const darkness = matchMedia("(prefers-color-scheme: dark)");
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const PRINT_WIDTH = 960; // px of an A4 page on its side, within the margins
let isPrinting = false;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function escapeText(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function format(iou) {
  return iou === null || iou === undefined ? "–" : iou.toFixed(2);
}

function shorten(text, length = 34) {
  return text.length > length ? text.slice(0, length - 1) + "…" : text;
}

// ---- the leaderboard: sorted by its headings

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (button) button.addEventListener("click", () => sortBy(table, heads, column));
  });
}

function sortBy(table, heads, column) {
  const head = heads[column];
  const numeric = [...table.tBodies[0].rows].every((row) => isNumber(row.cells[column].dataset.v));
  const startsDown = head.dataset.kind === "number";
  const now = head.getAttribute("aria-sort");
  const isUp = now ? now === "descending" : !startsDown;
  const read = (row) => row.cells[column].dataset.v;
  const rows = [...table.tBodies[0].rows].sort((one, other) => {
    const [a, b] = [read(one), read(other)];
    if (a === "" || b === "") return (a === "") - (b === ""); // what is not known comes last
    const order = numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    return isUp ? order : -order;
  });
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
  table.tBodies[0].append(...rows);
  find("sorted").textContent = `Sorted by ${head.textContent}, ${isUp ? "ascending" : "descending"}.`;
}

function isNumber(text) {
  return text === "" || Number.isFinite(Number(text));
}

// ---- charts: each is drawn by a function of the colours, anew when these or the paper change

const charts = [];

function addChart(place, label, caption, height, draw) {
  const plot = make("div", { className: "plot" });
  if (height) plot.style.height = `${height}px`;
  const words = make("figcaption", { textContent: caption });
  const figure = make("figure", {}, plot, words);
  figure.setAttribute("role", "group");
  figure.setAttribute("aria-label", label);
  find(place).append(figure);
  const chart = { plot, draw, words };
  charts.push(chart);
  return chart;
}

function readColors() {
  if (isPrinting) return { ink: "#1b1f24", soft: "#5a6472", line: "#d9dde3", best: "#0072b2", tied: "#e08a00", other: "#8c96a3", highlight: "#000000", paper: "#ffffff" };
  const style = getComputedStyle(document.documentElement);
  const names = ["ink", "soft", "line", "best", "tied", "other", "highlight", "paper"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function show(chart, width, height) {
  const colors = readColors();
  const { traces, layout } = chart.draw(colors);
  const axis = { color: colors.ink, gridcolor: colors.line, linecolor: colors.line, zeroline: false, fixedrange: true, automargin: true, title: { standoff: 8 } };
  const whole = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, showlegend: false, hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colors.ink },
    margin: { l: 58, r: 14, t: 12, b: 46 }, ...layout,
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis }, autosize: !width, width, height,
  };
  return Plotly.react(chart.plot, traces, whole, { displayModeBar: false, responsive: true, showTips: false });
}

function titled(text) {
  return { text: escapeText(text), standoff: 8 };
}

function addFronts() {
  const machine = find("machine");
  data.machines.forEach((one, index) => machine.append(new Option(one.name, index)));
  find("machine-choice").hidden = data.machines.length < 2;
  const costs = data.machines.length ? data.machines.flatMap((one) => one.costs.map((cost) => cost.label)) : [];
  for (const label of new Set(costs)) {
    const chart = addChart("fronts", `val/miou against ${label}`, "", 0, (colors) => drawFront(chart, label, colors));
  }
  machine.addEventListener("change", () => charts.filter((chart) => find("fronts").contains(chart.plot)).forEach((chart) => show(chart)));
}

function drawFront(chart, label, colors) {
  const machine = data.machines[Number(find("machine").value) || 0];
  const cost = machine.costs.find((one) => one.label === label) || { values: [], front: [] };
  const shown = data.settings.map((_, index) => index).filter((index) => typeof cost.values[index] === "number");
  const groups = [["worse", "unknown"], ["tied"], ["best"]].map((states) => {
    const some = shown.filter((index) => states.includes(data.states[index]));
    const color = colors[states[0] === "worse" ? "other" : states[0]];
    return {
      type: "scatter", mode: "markers", hoverinfo: "text", x: some.map((i) => cost.values[i]), y: some.map((i) => data.scores[i][0]),
      text: some.map((i) => `${escapeText(data.settings[i])}<br>val/miou ${data.scores[i][0].toFixed(3)}<br>${label} ${cost.values[i].toPrecision(4)}`),
      marker: { color, size: states[0] === "best" ? 12 : 9, symbol: { best: "diamond", tied: "circle", worse: "circle-open" }[states[0]], line: { width: 2, color } },
    };
  });
  const front = {
    type: "scatter", mode: "lines+markers", hoverinfo: "skip", x: cost.front.map((i) => cost.values[i]), y: cost.front.map((i) => data.scores[i][0]),
    line: { color: colors.ink, width: 1.2, dash: "dot" }, marker: { symbol: "circle-open", size: 18, color: colors.ink, line: { width: 1.2 } },
  };
  chart.words.textContent = cost.front.length ? `Front: ${cost.front.length > 4 ? "…; " : ""}${cost.front.slice(-4).map((i) => data.settings[i]).join("; ")}` : "Not measured on this machine.";
  const isWide = cost.values.some((v) => v > 0) && Math.max(...shown.map((i) => cost.values[i])) > 20 * Math.min(...shown.map((i) => cost.values[i]));
  return { traces: [front, ...groups], layout: { xaxis: { title: titled(label), type: isWide ? "log" : "linear", nticks: 6 }, yaxis: { title: titled("val/miou") } } };
}

function addCurves() {
  const highlight = find("highlight");
  highlight.append(new Option("none", ""));
  data.curves.slice(MAX_COLORED).forEach((_, index) => highlight.append(new Option(data.settings[index + MAX_COLORED], index + MAX_COLORED)));
  highlight.closest("p").hidden = data.curves.length <= MAX_COLORED;
  const drawn = ["val/miou", "val/loss", "train/loss"].filter((name) => data.curves.some((bands) => name in bands))
    .map((name) => addChart("curves", `${name} per epoch`, "", 0, (colors) => drawCurves(name, colors)));
  highlight.addEventListener("change", () => { drawn.forEach((chart) => show(chart)); listCurves(); });
  listCurves();
}

function styleCurve(index, colors) {
  if (String(index) === find("highlight").value) return { color: colors.highlight, dash: "solid", width: 3.5 };
  return { color: (darkness.matches && !isPrinting ? COLORS_ON_DARK : COLORS)[index], dash: DASHES[index], width: 2 };
}

function listCurves() {
  const chosen = find("highlight").value;
  const indices = data.curves.map((_, index) => index).slice(0, MAX_COLORED).concat(chosen ? [Number(chosen)] : []);
  find("curve-legend").replaceChildren(...indices.map((index) => {
    const { color, dash, width } = styleCurve(index, { highlight: "currentColor" });
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const dashes = { solid: "", dash: "8 4", dot: "2 3", dashdot: "8 3 2 3", longdash: "13 4", longdashdot: "13 3 2 3" };
    Object.entries({ width: 38, height: 10 }).forEach(([name, value]) => svg.setAttribute(name, value));
    Object.entries({ x1: 0, x2: 38, y1: 5, y2: 5, stroke: color, "stroke-width": width, "stroke-dasharray": dashes[dash] }).forEach(([name, value]) => line.setAttribute(name, value));
    svg.append(line);
    return make("li", {}, svg, ` ${data.settings[index]}`);
  }), ...(data.curves.length > MAX_COLORED ? [make("li", { textContent: `grey: the ${data.curves.length - MAX_COLORED} others` })] : []));
}

function drawCurves(name, colors) {
  const chosen = find("highlight").value;
  const colored = data.curves.map((_, index) => index).slice(0, MAX_COLORED).concat(chosen ? [Number(chosen)] : []).filter((index) => name in data.curves[index]);
  const others = data.curves.slice(MAX_COLORED).filter((bands) => name in bands).map((bands) => bands[name]);
  const grey = {
    type: "scatter", mode: "lines", hoverinfo: "skip", opacity: 0.45, line: { color: colors.other, width: 1 },
    x: others.flatMap((band) => [...band.x, null]), y: others.flatMap((band) => [...band.means, null]),
  };
  const traces = [grey];
  for (const index of [...colored].reverse()) { // the best lies on top
    const band = data.curves[index][name];
    const { color, dash, width } = styleCurve(index, colors);
    const fill = { type: "scatter", mode: "lines", hoverinfo: "skip", line: { width: 0 }, x: [...band.x, ...[...band.x].reverse()] };
    const hasBand = band.lows.some((low, at) => low < band.highs[at]);
    if (hasBand) traces.push({ ...fill, y: [...band.highs, ...[...band.lows].reverse()], fill: "toself", fillcolor: color.startsWith("#") ? color + "22" : color });
    traces.push({
      type: "scatter", mode: band.x.length < 12 ? "lines+markers" : "lines", x: band.x, y: band.means, hoverinfo: "text", line: { color, dash, width }, marker: { size: 5, color },
      text: band.x.map((epoch, at) => `${escapeText(data.settings[index])}<br>epoch ${epoch}: ${band.means[at]} (${band.lows[at]} to ${band.highs[at]})`),
    });
  }
  const most = Math.max(...data.curves.flatMap((bands) => (name in bands ? bands[name].x : [])));
  return { traces, layout: { xaxis: { title: titled("epoch"), ...(most <= 10 ? { dtick: 1 } : {}) }, yaxis: { title: titled(name) } } };
}

function addParallel() {
  addChart("parallel", "Settings and score of each setting as a line", "", 0, (colors) => drawParallel(colors));
}

function drawParallel(colors) {
  const rows = data.axes[0].at.map((_, index) => index);
  const scores = rows.map((index) => data.scores[index][0]);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const place = (score) => (high > low ? (score - low) / (high - low) : 0.5);
  // lines through one value are spread, worst at the bottom, so that each can be followed
  const spread = (axis, index) => {
    const step = 1 / axis.values.length;
    const inside = rows.length > 1 ? 0.5 - index / (rows.length - 1) : 0;
    return (axis.at[index] + 0.5) * step + inside * step * 0.55;
  };
  const last = data.axes.length;
  const traces = [["worse", "unknown"], ["tied"], ["best"]].map((states) => {
    const some = rows.filter((index) => states.includes(data.states[index]));
    const kind = states[0] === "worse" ? "other" : states[0];
    return {
      type: "scatter", mode: "lines+markers", hoverinfo: "text", opacity: kind === "other" ? 0.6 : 1,
      line: { color: colors[kind], width: kind === "best" ? 4 : kind === "tied" ? 2.5 : 1.2, shape: "spline", smoothing: 0.6 }, marker: { color: colors[kind], size: kind === "best" ? 8 : 5 },
      x: some.flatMap(() => [...data.axes.keys(), last, null]),
      y: some.flatMap((index) => [...data.axes.map((axis) => spread(axis, index)), place(data.scores[index][0]), null]),
      text: some.flatMap((index) => Array(last + 2).fill(`${escapeText(data.settings[index])}<br>val/miou ${data.scores[index][0].toFixed(3)}`)),
    };
  });
  const label = (x, y, text, left) => ({ x, y, text: escapeText(shorten(text, 18)), showarrow: false, xanchor: left ? "right" : "left", xshift: left ? -9 : 9, font: { size: 11, color: colors.ink }, bgcolor: colors.paper, borderpad: 1, opacity: 0.9 });
  const annotations = data.axes.flatMap((axis, x) => axis.values.map((value, at) => ({ axis, x, value, at })).filter(({ at }) => at % Math.ceil(axis.values.length / 12) === 0)
    .map(({ x: column, value, at }) => label(column, (at + 0.5) / axis.values.length, value, true)));
  for (const share of high > low ? [0, 0.25, 0.5, 0.75, 1] : [0.5]) annotations.push(label(last, share, (low + share * (high - low)).toFixed(3), false));
  const line = (x) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, line: { color: colors.soft, width: 1 }, layer: "below" });
  return {
    traces, layout: {
      annotations, shapes: [...data.axes.keys(), last].map(line), margin: { l: 70, r: 60, t: 34, b: 12 },
      xaxis: { range: [-0.12, last + 0.08], tickvals: [...data.axes.keys(), last], ticktext: [...data.axes.map((axis) => escapeText(shorten(axis.name, 20))), "val/miou"], side: "top", showgrid: false },
      yaxis: { visible: false, range: [-0.04, 1.04] },
    },
  };
}

function addScatter() {
  const [first, second] = [find("first"), find("second")];
  for (const select of [first, second]) data.ious.forEach((_, index) => select.append(new Option(data.settings[index], index)));
  second.value = "1";
  const chart = addChart("scatter", "IoU of each photo by two settings", "A dot is a photo; above the line the upper setting is better.", 0, (colors) => drawScatter(colors));
  const change = () => { show(chart); tellScatter(); };
  first.addEventListener("change", change);
  second.addEventListener("change", change);
  tellScatter();
}

function pairIous() {
  const [a, b] = [Number(find("first").value), Number(find("second").value)];
  const known = data.photos.map((_, index) => index).filter((index) => data.ious[a][index] !== null && data.ious[b][index] !== null);
  return { a, b, known };
}

function tellScatter() {
  const { a, b, known } = pairIous();
  const difference = known.map((index) => data.ious[b][index] - data.ious[a][index]);
  const [better, worse] = [difference.filter((d) => d > 0).length, difference.filter((d) => d < 0).length];
  find("scatter-words").textContent = `${data.settings[b]} is better than ${data.settings[a]} on ${better} photos, worse on ${worse}, equal on ${known.length - better - worse}.`;
}

function drawScatter(colors) {
  const { a, b, known } = pairIous();
  const dots = {
    type: "scatter", mode: "markers", hoverinfo: "text", x: known.map((i) => data.ious[a][i] / 1000), y: known.map((i) => data.ious[b][i] / 1000),
    text: known.map((i) => `${escapeText(shorten(data.photos[i], 60))}<br>across ${(data.ious[a][i] / 1000).toFixed(3)}, up ${(data.ious[b][i] / 1000).toFixed(3)}`),
    marker: { color: colors.best, size: 7, opacity: 0.65, line: { width: 0 } },
  };
  const diagonal = { type: "scatter", mode: "lines", hoverinfo: "skip", x: [0, 1], y: [0, 1], line: { color: colors.soft, width: 1, dash: "dot" } };
  const axis = (index) => ({ range: [-0.02, 1.02], dtick: 0.2, title: titled(`IoU, ${shorten(data.settings[index])}`), constrain: "domain" });
  return { traces: [diagonal, dots], layout: { xaxis: axis(a), yaxis: { ...axis(b), scaleanchor: "x" } } };
}

// ---- photos: one copy of each and a small map of labels per setting; views are painted here

const decoded = new Map(); // photos and truths; what all settings see in them would be hundreds of megabytes

function decodeOnce(type, base64) {
  if (!decoded.has(base64)) decoded.set(base64, decode(type, base64));
  return decoded.get(base64);
}

async function decode(type, base64) {
  const image = new Image();
  image.src = `data:image/${type};base64,${base64}`;
  await image.decode();
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height).data;
}

// One view of a photo: photo, truth, prediction, errors; all but the photo are grey where nothing is.
async function paint(canvas, view, index, setting) {
  const photo = data.gallery.photos[index];
  const pixels = await decodeOnce("jpeg", photo.jpeg);
  const truth = await decodeOnce("png", photo.truth);
  const seen = view === "prediction" || view === "errors" ? await decode("png", data.gallery.seen[setting].pngs[index]) : truth;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(photo.w, photo.h);
  const { hit, miss, alarm, void: grey } = data.gallery.colors;
  for (let at = 0; at < pixels.length; at += 4) {
    const [real, found] = [truth[at], seen[at]];
    const mean = (pixels[at] + pixels[at + 1] + pixels[at + 2]) / 3;
    let color = null;
    if (view === "prediction") color = found ? hit : null;
    else if (view !== "photo" && real === 255) color = grey;
    else if (view === "truth") color = real ? hit : null;
    else if (view === "errors") color = real && found === real ? hit : found ? alarm : real ? miss : null;
    for (let channel = 0; channel < 3; channel++) {
      const base = view === "photo" ? pixels[at + channel] : mean;
      picture.data[at + channel] = color ? 0.4 * base + 0.6 * color[channel] : base;
    }
    picture.data[at + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
  canvas.dataset.painted = view;
}

function makeCanvas(index, label) {
  const photo = data.gallery.photos[index];
  const canvas = make("canvas", { width: photo.w, height: photo.h });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  return canvas;
}

function nameView(view, index, setting) {
  const photo = data.gallery.photos[index].name;
  if (view === "photo" || view === "truth") return `${photo}: ${view}`;
  return `${photo} by ${data.settings[setting]}: ${view === "errors" ? "hits and errors" : view}, IoU ${format(data.gallery.seen[setting].ious[index])}`;
}

// Canvases wait in line, so that a page of thousands answers in between; the promise ends with the last.
const waiting = [];
let painter = null;

function paintLater(canvas, view, index, setting) {
  waiting.push([canvas, view, index, setting]);
  painter ??= paintWaiting().finally(() => { painter = null; });
  return painter;
}

async function paintWaiting() {
  let start = performance.now();
  while (waiting.length) {
    await paint(...waiting.shift());
    if (performance.now() - start > 30) {
      await new Promise((resolve) => setTimeout(resolve));
      start = performance.now();
    }
  }
}

function addViews(place, index, setting) {
  for (const view of ["photo", "truth", "prediction", "errors"]) {
    const canvas = makeCanvas(index, nameView(view, index, setting));
    place.append(make("div", {}, canvas, make("small", { textContent: view === "errors" ? "hits and errors" : view })));
    paintLater(canvas, view, index, setting);
  }
}

function showLarge(index, setting) {
  const dialog = find("large");
  find("large-title").textContent = `${data.gallery.photos[index].name} by ${data.settings[setting]}: IoU ${format(data.gallery.seen[setting].ious[index])}`;
  dialog.querySelector(".views").replaceChildren();
  addViews(dialog.querySelector(".views"), index, setting);
  dialog.showModal();
}

const readView = () => document.querySelector("input[name=view]:checked").value;

function addGalleryRow(body, setting) {
  const { seen, same } = data.gallery;
  const words = [data.settings[setting], make("br"), make("small", { textContent: `val/miou ${data.scores[setting][0].toFixed(3)}${seen[setting] ? `, seed ${seen[setting].seed}` : ""}` })];
  const head = make("th", { scope: "row" }, ...words);
  const cells = same.map((index) => {
    if (!seen[setting]) return make("td", { textContent: "no model" });
    const canvas = makeCanvas(index, nameView(readView(), index, setting));
    Object.assign(canvas.dataset, { index, setting });
    const button = make("button", { type: "button" }, canvas);
    button.addEventListener("click", () => showLarge(index, setting));
    paintLater(canvas, readView(), index, setting);
    return make("td", {}, button, make("small", { textContent: format(seen[setting].ious[index]) }));
  });
  body.append(make("tr", {}, head, ...cells));
}

function addGallery() {
  const { photos, same, worst, seen } = data.gallery;
  find("pictures").hidden = !photos.length;
  find("no-pictures").hidden = photos.length > 0 || !find("missing").textContent;
  if (!photos.length) return;
  Object.entries(data.gallery.colors).forEach(([name, color]) => { find(name).style.background = `rgb(${color.join(" ")})`; });
  const table = find("gallery");
  const head = table.createTHead().insertRow();
  head.append(make("th", { scope: "col", textContent: "setting" }), ...same.map((index) => make("th", { scope: "col", textContent: photos[index].name, title: photos[index].name })));
  const body = table.createTBody();
  for (const view of ["photo", "truth"]) {
    body.append(make("tr", {}, make("th", { scope: "row", textContent: view }), ...same.map((index) => {
      const canvas = makeCanvas(index, nameView(view, index));
      paintLater(canvas, view, index);
      return make("td", {}, canvas);
    })));
  }
  seen.slice(0, MAX_ROWS_AT_FIRST).forEach((_, setting) => addGalleryRow(body, setting));
  const more = find("more");
  more.hidden = seen.length <= MAX_ROWS_AT_FIRST;
  more.textContent = `Show all ${seen.length} settings`;
  more.addEventListener("click", () => {
    more.hidden = true;
    for (let setting = MAX_ROWS_AT_FIRST; setting < seen.length; setting++) addGalleryRow(body, setting);
    body.rows[MAX_ROWS_AT_FIRST + 2].querySelector("button")?.focus();
  });
  find("views").addEventListener("change", () => {
    for (const canvas of body.querySelectorAll("canvas[data-setting]")) {
      const { index, setting } = canvas.dataset;
      canvas.setAttribute("aria-label", nameView(readView(), index, setting));
      paintLater(canvas, readView(), Number(index), Number(setting));
    }
  });
  addWorst(worst, seen);
}

function addWorst(worst, seen) {
  find("worst-setting").textContent = `${data.settings[0]}: the photos of lowest IoU, worst first, the mean over its seeds; pictures by ${seen[0] ? `seed ${seen[0].seed}` : "no model: it is gone"}.`;
  for (const index of seen[0] ? worst : []) {
    const views = make("div", { className: "views" });
    find("worst").append(make("figure", {}, make("h3", { textContent: `${data.gallery.photos[index].name}: IoU ${format(seen[0].ious[index])}` }), views));
    addViews(views, index, 0);
  }
}

// ---- all together

function reveal() {
  const has = {
    machines: data.machines.some((one) => one.costs.length), curves: data.curves.some((bands) => Object.keys(bands).length),
    axes: data.axes.length > 0, ious: data.ious.length > 1 && data.photos.length > 0, settings: data.settings.length > 0,
  };
  for (const section of document.querySelectorAll("[data-needs]")) section.hidden = !has[section.dataset.needs];
  find("effects").hidden = !find("effects").querySelector("table");
  return has;
}

async function drawAll() {
  for (const chart of charts) {
    await show(chart);
    if (chart === charts[0]) performance.mark("interactive");
    await new Promise((resolve) => setTimeout(resolve)); // the page answers between two charts
  }
}

function showForPaper() {
  isPrinting = true;
  for (const chart of charts) {
    const place = chart.plot.closest(".charts");
    const [share, height] = place.classList.contains("wide") ? [1, 260] : place.classList.contains("square") ? [0.4, 384] : [0.32, 215];
    show(chart, PRINT_WIDTH * share, height);
  }
  if (has.curves) listCurves();
}

function showForScreen() {
  isPrinting = false;
  charts.forEach((chart) => show(chart));
  if (has.curves) listCurves();
}

const table = find("leaderboard");
if (table) makeSortable(table);
performance.mark("sortable");
const has = reveal();
document.addEventListener("DOMContentLoaded", async () => {
  if (has.machines) addFronts();
  if (has.curves) addCurves();
  if (has.axes) addParallel();
  if (has.ious) addScatter();
  await drawAll();
  addGallery();
  await painter;
  document.documentElement.dataset.ready = "yes";
  darkness.addEventListener("change", showForScreen);
  addEventListener("beforeprint", showForPaper);
  addEventListener("afterprint", showForScreen);
});
