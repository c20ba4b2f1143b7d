// What the page does: fills the charts that follow the slider, the selected candidate and the brush. Plotly draws.
"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const BLUE = "#0072B2", FAINT = "#C3CAD3", RED = "#D55E00", INK = "#222222", PURPLE = "#AA3377";
const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "autoScale2d"] };
const element = (id) => document.getElementById(id);
const candidates = D.ids.map((_, i) => i);
const trained = candidates.filter((i) => D.places[i]);
const baselines = trained.filter((i) => D.origins[i] === "baseline");
const evolved = trained.filter((i) => D.origins[i] !== "baseline");
const webgl = (() => {
  const canvas = document.createElement("canvas");
  return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
})();
let step = D.generations - 1, selected = null, brushed = [];
let spatial = false; // whether the 3-D view is drawn: the last, because it takes the longest

// Plotly reads some HTML in texts; what comes from a run is plain text.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function merge(base, more) {
  const result = { ...base };
  for (const [key, value] of Object.entries(more || {})) {
    const both = value && result[key] && typeof value === "object" &&
      !Array.isArray(value) && !Array.isArray(result[key]);
    result[key] = both ? merge(result[key], value) : value;
  }
  return result;
}

function draw(id, traces, layout) {
  return Plotly.react(id, traces, merge(D.layout, layout), CONFIG);
}

function make(tag, text, parent, attributes) {
  const made = Object.assign(document.createElement(tag), attributes || {});
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// The fronts.

const last = () => step === D.generations - 1;
const shown = (i) => (last() && D.rescored && D.fresh[i]) ||
  { values: D.values[i], places: D.places[i], bars: D.bars[i] };
const order = new Map(evolved.map((i, n) => [i, n + 1]));
const place = (i, axis) => (axis < 0 ? order.get(i) || 0 : shown(i).places[axis]);

function onFront() {
  if (last()) return D.front;
  return evolved.filter((i) => D.stays[i] && D.stays[i][0] <= step && step < D.stays[i][1]);
}

function about(i) {
  const names = [...new Set(D.layers[i].kinds.map((k) => D.kinds[k].name))].map(plain).join(" ");
  const values = D.objectives.map((o, k) => `${plain(o.name)} ${plain(shown(i).values[k])}`);
  const born = D.origins[i] === "baseline" ? "baseline" : `generation ${D.generation[i]}`;
  const livs = `${D.layers[i].kinds.length} LIVs: ${names}`;
  return `<b>${plain(D.labels[i])}</b>, ${born}<br>${values.join("<br>")}<br>${livs}`;
}

function cloud(axes, members, look) {
  const trace = { type: axes.length > 2 ? "scatter3d" : "scatter", mode: "markers", customdata: members, ...look };
  axes.forEach((axis, n) => { trace["xyz"[n]] = members.map((i) => place(i, axis)); });
  trace.hovertemplate = "%{text}<extra></extra>";
  trace.text = members.map(about);
  return trace;
}

function withBars(axes, trace, color) {
  if (axes.length < 3) axes.forEach((axis, n) => {
    if (axis < 0 || D.objectives[axis].exact) return;
    const bars = trace.customdata.map((i) => shown(i).bars[axis] || [0, 0]);
    const look = { type: "data", color, thickness: 1, width: 0 };
    trace[`error_${"xyz"[n]}`] = { ...look, array: bars.map((b) => b[0]), arrayminus: bars.map((b) => b[1]) };
  });
  return trace;
}

// The corners of the step line that joins what nothing beats in two objectives.
function attainment(axes, members) {
  const sign = axes.map((axis) => (axis < 0 ? 1 : D.objectives[axis].sign));
  const points = members.map((i) => axes.map((axis, n) => sign[n] * place(i, axis)));
  points.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const corners = [];
  for (const point of points) if (!corners.length || point[1] < corners[corners.length - 1][1]) corners.push(point);
  return corners.map((point) => point.map((value, n) => sign[n] * value));
}

function frontTraces(axes) {
  const flat = axes.length === 2, now = evolved.filter((i) => D.generation[i] <= step), front = onFront();
  const members = new Set(front), size = flat ? 1 : 0.6, legend = (name) => ({ name, showlegend: flat });
  const rest = last() && D.rescored ? now : now.filter((i) => !members.has(i));
  const many = legend(last() && D.rescored ? "one seed each" : "dominated");
  const traces = [cloud(axes, rest, { ...many, marker: { color: FAINT, size: 6 * size } })];
  if (flat) {
    const corners = attainment(axes, last() && D.rescored ? front : now);
    const line = { shape: "hv", color: BLUE, width: 1.4 };
    traces.push({ x: corners.map((c) => c[0]), y: corners.map((c) => c[1]), mode: "lines", line, opacity: 0.6,
      hoverinfo: "skip", name: "best in these two", showlegend: false });
  }
  const white = { width: 1, color: "white" };
  const dots = { ...legend("Pareto front"), marker: { color: BLUE, size: 9 * size, line: white } };
  traces.push(withBars(axes, cloud(axes, front, dots), "rgba(0,114,178,.45)"));
  const ring = { color: "white", size: 9 * size, symbol: "diamond", line: { color: INK, width: 1.6 } };
  traces.push(withBars(axes, cloud(axes, baselines, { ...legend("baselines"), marker: ring }), "rgba(34,34,34,.4)"));
  const named = [D.knee, D.best].filter((i) => i !== null && D.generation[i] <= step);
  const star = { color: RED, size: flat ? 15 : 7, symbol: flat ? "star" : "diamond", line: white };
  traces.push(cloud(axes, named, { ...legend("recommended"), marker: star }));
  const rings = brushed.filter((i) => D.generation[i] <= step || D.origins[i] === "baseline");
  const ringed = (color, size) => (flat ? { color: "rgba(0,0,0,0)", size, line: { color, width: 2.2 } }
    : { color, size: 0.6 * size, symbol: "circle-open" });
  traces.push(cloud(axes, rings, { name: "picked", showlegend: false, hoverinfo: "skip", marker: ringed(PURPLE, 13) }));
  const chosen = selected !== null && D.places[selected] ? [selected] : [];
  traces.push(cloud(axes, chosen, { name: "selected", showlegend: false, hoverinfo: "skip", marker: ringed(INK, 19) }));
  return traces;
}

function axisOf(k) {
  if (k < 0) return { title: { text: "candidates trained" } };
  return { title: { text: plain(D.objectives[k].title) }, zeroline: false, ...D.objectives[k].ticks };
}

function drawFronts(panels = spatial ? ".panel" : ".panel:not(#front-3d)") {
  const name = step === 0 ? "initial" : `${step} of ${D.generations - 1}`;
  if (!element("generation")) return;
  element("generation-name").textContent = last() && D.rescored ? `${name}, fresh seeds` : name;
  for (const panel of document.querySelectorAll(panels)) {
    const axes = panel.dataset.axes.split(",").map(Number);
    const keep = { uirevision: "same", showlegend: panel.id === "front-0" };
    if (axes.length === 2) {
      draw(panel.id, frontTraces(axes), { ...keep, xaxis: axisOf(axes[0]), yaxis: axisOf(axes[1]), margin: { t: 36 } });
    } else if (webgl) {
      const grid = { gridcolor: "#DDE2E8", showbackground: false };
      const scene = { camera: { eye: { x: 1.6, y: 1.6, z: 0.8 } }, uirevision: "same" };
      axes.forEach((k, n) => {
        scene["xyz"[n] + "axis"] = { ...grid, ...axisOf(k), title: { text: plain(D.objectives[k].name) } };
      });
      draw(panel.id, frontTraces(axes), { ...keep, scene, margin: { l: 0, r: 0, t: 0, b: 0 } });
    } else {
      panel.classList.add("no-webgl");
      panel.textContent =
        "The 3-D view needs WebGL, which this browser does not have; the other panels show the same points.";
    }
  }
}

// The selected architecture.

function arcs(i, kind, edge, side) {
  const x = [], y = [], text = [], places = { x: [], y: [] };
  for (const [which, owner, consumer, lane, groups] of D.layers[i].links) {
    if (which !== kind) continue;
    const out = edge + side * (0.22 + 0.17 * lane);
    x.push(edge, out, out, edge, null);
    y.push(owner + 1, owner + 1.12, consumer + 0.88, consumer + 1, null);
    places.x.push(edge + side * 0.04);
    places.y.push(consumer + 0.8);
    text.push(plain(groups));
  }
  const color = kind === "weights" ? RED : BLUE, name = kind === "weights" ? "shared weights" : "shared features";
  const line = { color, width: 1.8, shape: "spline", smoothing: 0.6 };
  const labels = { mode: "text", ...places, text, textfont: { size: 10, color }, hoverinfo: "skip", showlegend: false };
  return [{ x, y, mode: "lines", line, name, hoverinfo: "skip", showlegend: x.length > 0 },
    { ...labels, textposition: side < 0 ? "middle left" : "middle right" }];
}

function drawLayers(i) {
  const L = D.layers[i], rows = L.kinds.map((_, n) => n + 1), kinds = L.kinds.map((k) => D.kinds[k]);
  const names = kinds.map((k) => plain(k.name)), colors = kinds.map((k) => k.color);
  const bar = (xaxis, x, more) => ({ type: "bar", orientation: "h", y: rows, x, xaxis, showlegend: false, ...more });
  const words = kinds.map((k, n) => `LIV ${n + 1}: <b>${plain(k.name)}</b>, ${k.family}<br>${plain(k.equation)}`);
  const boxes = bar("x", rows.map(() => 1), { text: names, textposition: "inside", insidetextanchor: "middle",
    textangle: 0, constraintext: "none", textfont: { color: kinds.map((k) => k.ink) }, customdata: words,
    hovertemplate: "%{customdata}<extra></extra>", marker: { color: colors, line: { color: "white", width: 1 } } });
  const grey = { marker: { color: "#B8C4CE" } };
  const parameters = bar("x2", L.parameters, { ...grey, hovertemplate: "LIV %{y}: %{x:,} parameters<extra></extra>" });
  const bytes = `LIV %{y}: %{x:,} bytes at ${D.cacheLengths[0].toLocaleString("en")} tokens<extra></extra>`;
  const cache = bar("x3", L.cache[0], { ...grey, hovertemplate: bytes });
  const lanes = (kind) => Math.max(0, ...L.links.filter((l) => l[0] === kind).map((l) => l[3] + 1));
  const reach = (kind) => (lanes(kind) ? 0.35 + 0.17 * lanes(kind) : 0.05);
  const small = { showgrid: false, zeroline: false, nticks: 3, tickformat: "~s", side: "top", tickfont: { size: 10 } };
  draw("layers", [boxes, ...arcs(i, "weights", 0, -1), ...arcs(i, "features", 1, 1), parameters, cache], {
    height: 110 + (rows.length > 8 ? 30 : 54) * rows.length, bargap: 0.18, margin: { l: 34, t: 66, b: 26, r: 8 },
    yaxis: { autorange: "reversed", tickvals: rows, showgrid: false, zeroline: false, showline: false,
      range: [rows.length + 0.6, 0.4] },
    xaxis: { domain: [0, 0.58], range: [-reach("weights"), 1 + reach("features")], visible: false },
    xaxis2: { ...small, domain: [0.62, 0.8], title: { text: "parameters", font: { size: 11 }, standoff: 4 } },
    xaxis3: { ...small, domain: [0.84, 1], title: { text: "cache, bytes", font: { size: 11 }, standoff: 4 } },
    legend: { y: -0.01, yanchor: "top" } });
}

function curveTrace(i, look) {
  return { x: D.curves[i][0], y: D.curves[i][1], mode: "lines+markers", ...look };
}

const CURVE_AXES = { xaxis: { title: { text: "training tokens" }, rangemode: "tozero" },
  yaxis: { title: { text: "bits per byte" } } };

function ngrams() {
  const grey = "#555555", line = { color: grey, width: 1, dash: "dot" };
  const look = { type: "line", xref: "paper", x0: 0, x1: 1, line };
  const label = { textposition: "start", font: { size: 11, color: grey } };
  return Object.entries(D.bitsPerByte).map(([name, level]) => ({ ...look, y0: level, y1: level,
    label: { ...label, text: plain(name) } }));
}

function drawCurve(i) {
  const mine = curveTrace(i, { line: { color: RED, width: 2.4 }, name: plain(D.labels[i]) });
  const others = baselines.filter((b) => b !== i && D.curves[b][0].length).map((b, n) => curveTrace(b, { mode: "lines",
    line: { color: INK, width: 1.2, dash: ["dash", "dot", "dashdot"][n % 3] }, name: plain(D.labels[b]) }));
  draw("curve", D.curves[i][0].length ? [mine, ...others] : others, { height: 250, ...CURVE_AXES, showlegend: true });
}

function ancestors(i) {
  const found = new Set([i]);
  for (const n of found) { // grows while it is read
    for (const parent of D.parents[n]) if (found.size < 200) found.add(parent);
  }
  return [...found];
}

function drawLineage(i) {
  const family = ancestors(i), children = candidates.filter((n) => D.parents[n].includes(i));
  const all = [...family, ...children].filter((n) => D.places[n]);
  const x = [], y = [], at = (n) => [D.generation[n], D.places[n][0]];
  for (const n of all) for (const parent of D.parents[n]) {
    if (!D.places[parent] || (children.includes(n) && parent !== i)) continue;
    const [a, b] = [at(parent), at(n)];
    x.push(a[0], b[0], null); y.push(a[1], b[1], null);
  }
  const dots = (members, name, color, size) => ({ x: members.map((n) => at(n)[0]), y: members.map((n) => at(n)[1]),
    mode: "markers", name, customdata: members,
    text: members.map((n) => `${about(n)}<br>${plain(D.operators[n] || D.origins[n])}`),
    hovertemplate: "%{text}<extra></extra>", marker: { color, size, line: { color: "white", width: 1 } } });
  const known = (list) => list.filter((n) => D.places[n]);
  const edges = { x, y, mode: "lines", line: { color: "#B4BEC9", width: 1.2 }, hoverinfo: "skip", showlegend: false };
  draw("lineage", [edges, dots(known(family.slice(1)), "ancestors", BLUE, 8),
    dots(known(children), "children", "#009E73", 8), dots(known([i]), "selected", RED, 12)],
  { height: 250, xaxis: { title: { text: "generation" }, dtick: Math.max(1, Math.ceil(D.generations / 12)) },
    yaxis: { title: { text: plain(D.objectives[0].name) }, ...D.objectives[0].ticks } });
}

function words(i) {
  const L = D.layers[i], table = make("table"), head = make("tr", undefined, make("thead", undefined, table));
  for (const name of ["LIV", "genes", "class", "operator", "sharing"]) make("th", name, head);
  const body = make("tbody", undefined, table);
  L.kinds.forEach((k, n) => {
    const row = make("tr", undefined, body), kind = D.kinds[k];
    const cells = [n + 1, L.genes[n], kind.name, `${kind.words}; ${kind.equation}`, L.sharing[n]];
    for (const text of cells) make("td", text, row);
  });
  element("words").replaceChildren(table);
}

function select(i, scroll) {
  if (i === null || i === undefined || !element("layers")) return;
  selected = i;
  const L = D.layers[i], title = element("selected-title");
  title.replaceChildren();
  make("strong", D.labels[i], title);
  const born = D.origins[i] === "baseline" ? "baseline" : `${D.origins[i]}, generation ${D.generation[i]}`;
  const how = D.operators[i] ? ` by ${D.operators[i]}` : "";
  const from = D.parents[i].length ? ` from ${D.parents[i].map((p) => D.labels[p]).join(" and ")}` : "";
  const measured = D.values[i] && D.objectives.map((o, k) => `${o.name} ${shown(i).values[k]}`).join(", ");
  const values = measured || `${D.status[i]} ${D.reasons[i]}`;
  const caches = D.cacheLengths.map((n, k) => `${L.total[k + 1]} at ${n / 1024} K`).join(", ");
  make("span", `: ${born}${how}${from}. ${values}.`, title);
  make("br", undefined, title);
  const size = `${L.kinds.length} LIVs of width ${D.widths[i]} with ${L.total[0]} parameters`;
  make("span", `${size}; cache ${caches} tokens. `, title);
  make("code", D.texts[i], title);
  const stripe = element("selected-stripe");
  stripe.replaceChildren();
  for (const kind of L.kinds.map((k) => D.kinds[k])) {
    make("span", kind.name, stripe, { title: kind.equation, style: `background:${kind.color};color:${kind.ink}` });
  }
  drawLayers(i); drawCurve(i); drawLineage(i); words(i); drawFronts(); markCurve();
  history.replaceState(null, "", `#id=${D.ids[i]}&generation=${step}`);
  if (scroll) element("selected-architecture").scrollIntoView();
}

// Learning curves of all candidates: one trace for each generation, with gaps between the curves.

const hue = (share) => `hsl(${265 - 165 * share}, ${50 + 10 * share}%, ${28 + 32 * share}%)`;

function drawCurves() {
  if (!element("curves")) return;
  const traces = [];
  for (let g = 0; g < D.generations; g++) {
    const line = { color: hue(g / Math.max(1, D.generations - 1)), width: 1.1 };
    const name = g ? `generation ${g}` : "initial";
    const trace = { x: [], y: [], customdata: [], text: [], mode: "lines", line, opacity: 0.8, name,
      showlegend: D.generations <= 12, hovertemplate: "%{text}<br>%{y:.3f}<extra></extra>" };
    for (const i of candidates) {
      if (D.generation[i] !== g || D.origins[i] === "baseline" || !D.curves[i][0].length) continue;
      const points = D.curves[i][0].length + 1;
      trace.x.push(...D.curves[i][0], null);
      trace.y.push(...D.curves[i][1], null);
      trace.customdata.push(...Array(points).fill(i));
      trace.text.push(...Array(points).fill(`${plain(D.labels[i])}, ${name}`));
    }
    if (trace.x.length) traces.push(trace);
  }
  for (const i of baselines) if (D.curves[i][0].length) {
    const look = { mode: "lines", line: { color: INK, width: 1.8 }, name: plain(D.labels[i]) };
    traces.push(curveTrace(i, { ...look, customdata: D.curves[i][0].map(() => i) }));
  }
  const line = { color: RED, width: 3 };
  traces.push({ x: [], y: [], mode: "lines+markers", line, name: "selected", hoverinfo: "skip" });
  const levels = Object.values(D.bitsPerByte), ends = D.curves.flatMap((curve) => curve[1].slice(-1));
  const all = candidates.flatMap((i) => D.curves[i][1]).concat(levels);
  const low = all.reduce((a, b) => Math.min(a, b), Infinity);
  const top = [...levels, ...ends].reduce((a, b) => Math.max(a, b), 0), room = top - low;
  const yaxis = { title: { text: "validation loss (bits per byte)" }, range: [low - 0.06 * room, top + 0.08 * room] };
  draw("curves", traces, { height: 440, ...CURVE_AXES, yaxis, shapes: ngrams(), hovermode: "closest" });
}

function markCurve() {
  const chart = element("curves");
  if (!chart || !chart.data) return;
  Plotly.restyle(chart, { x: [D.curves[selected][0]], y: [D.curves[selected][1]] }, [chart.data.length - 1]);
}

function nameCells(heat) {
  const columns = heat.meta.map((i) => `${plain(D.labels[i])}, generation ${D.generation[i]}`);
  heat.customdata = heat.z.map(() => heat.meta);
  const text = (k, column, n) => (k === null ? "" : `${column}<br>LIV ${n + 1}: ${plain(D.kinds[k].name)}`);
  heat.text = heat.z.map((row, n) => row.map((k, m) => text(k, columns[m], n)));
  heat.hovertemplate = "%{text}<extra></extra>";
}

// Brushing.

function pick(members) {
  brushed = members.length === trained.length ? [] : members;
  drawFronts();
  const note = element("picked"), box = element("picked-table");
  if (!note) return;
  note.textContent = brushed.length ? `${brushed.length} of ${trained.length} candidates picked` : "";
  box.replaceChildren();
  element("unpick").hidden = !brushed.length;
  if (!brushed.length) return;
  const table = make("table", undefined, box), head = make("tr", undefined, make("thead", undefined, table));
  for (const name of ["candidate", ...D.objectives.map((o) => o.name), "LIVs"]) make("th", name, head);
  const body = make("tbody", undefined, table);
  const best = [...brushed].sort((a, b) => D.objectives[0].sign * (D.places[a][0] - D.places[b][0]));
  for (const i of best.slice(0, 10)) {
    const row = make("tr", undefined, body);
    row.dataset.candidate = i;
    const livs = D.layers[i].kinds.map((k) => D.kinds[k].name).join(" ");
    for (const text of [D.labels[i], ...shown(i).values, livs]) make("td", text, row);
  }
  if (best.length > 10) note.textContent += "; the best ten:";
}

// Parallel coordinates: lines from axis to axis, each from 0 to 1; boxes that Plotly selects limit the axes in them.
function drawParallel() {
  const { numbers, kinds, axes } = D.parallel;
  if (!element("parallel")) return;
  const wider = ([low, high], v) => [Math.min(low, v), Math.max(high, v)];
  const spans = axes.map((a) => a.values.reduce(wider, [Infinity, -Infinity]));
  const height = (k, value) => (value - spans[k][0]) / (spans[k][1] - spans[k][0] || 1);
  const lines = (members, look) => {
    const trace = { x: [], y: [], mode: "lines", hoverinfo: "skip", ...look };
    for (const n of members) {
      axes.forEach((a, k) => { trace.x.push(k); trace.y.push(height(k, a.values[n])); });
      trace.x.push(null); trace.y.push(null);
    }
    return trace;
  };
  const all = numbers.map((_, n) => n), of = (kind) => all.filter((n) => kinds[n] === kind);
  const traces = [lines(of(0), { name: "dominated", line: { color: FAINT, width: 1 } }),
    lines(of(1), { name: "Pareto front", line: { color: BLUE, width: 1.6 } }),
    lines(of(2), { name: "baselines", line: { color: INK, width: 1.8 } }),
    { x: [], y: [], mode: "lines", name: "picked", hoverinfo: "skip", line: { color: PURPLE, width: 2.2 } }];
  const annotations = axes.flatMap((a, k) => {
    const ends = spans[k].map((v) => +v.toPrecision(3));
    const vals = (a.tickvals || ends).filter((v) => spans[k][0] <= v && v <= spans[k][1] || !a.tickvals);
    const texts = a.tickvals ? vals.map((v) => a.ticktext[a.tickvals.indexOf(v)]) : ends;
    const look = { showarrow: false, xanchor: "right", xshift: -4, bgcolor: "rgba(255,255,255,.75)",
      font: { size: 10, color: "#5B6878" } };
    return vals.map((v, n) => ({ ...look, x: k, y: height(k, v), text: plain(texts[n]) }));
  });
  draw("parallel", traces, { height: 420, dragmode: "select", margin: { t: 60, l: 60, b: 10 }, annotations,
    legend: { y: 1.1 }, xaxis: { tickvals: axes.map((_, k) => k), side: "top", showline: false,
      ticktext: axes.map((a) => `<b>${plain(a.label)}</b>`), gridcolor: "#8894A2", zeroline: false,
      range: [-0.4, axes.length - 0.8], fixedrange: true },
    yaxis: { visible: false, range: [-0.06, 1.06], fixedrange: true } });
  const chart = element("parallel");
  const limit = () => {
    const range = (a, b) => [Math.min(a, b), Math.max(a, b)];
    const boxes = (chart.layout.selections || []).map((s) => [range(s.x0, s.x1), range(s.y0, s.y1)]);
    const inside = (n, k) => {
      const here = boxes.filter(([x]) => x[0] <= k && k <= x[1]), at = height(k, axes[k].values[n]);
      return !here.length || here.some(([, y]) => y[0] <= at && at <= y[1]);
    };
    const picked = boxes.length ? all.filter((n) => axes.every((_, k) => inside(n, k))) : all;
    const shown = picked.length < all.length ? lines(picked, {}) : { x: [], y: [] };
    Plotly.restyle(chart, { x: [shown.x], y: [shown.y] }, [3]);
    pick(picked.map((n) => numbers[n]));
  };
  chart.on("plotly_selected", limit);
  const clear = () => Plotly.relayout(chart, { selections: [] }).then(limit);
  chart.on("plotly_deselect", clear);
  element("unpick").addEventListener("click", clear);
}

// Start.

const later = () => new Promise((done) => setTimeout(done)); // the browser may paint and answer in between

async function start() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const slider = element("generation"), known = D.ids.indexOf(asked.get("id"));
  if (slider) {
    if (asked.has("generation") && !D.refresh) slider.value = asked.get("generation");
    step = Number(slider.value);
    let waits = false;
    slider.addEventListener("input", () => {
      step = Number(slider.value);
      if (!waits) setTimeout(() => { waits = false; drawFronts(); });
      waits = true;
    });
  }
  select(known >= 0 ? known : D.best ?? trained[0] ?? candidates[0]);
  if (!element("layers")) drawFronts();
  await later();
  for (const [id, chart] of Object.entries(D.charts)) {
    if (id === "population") nameCells(chart.data[0]);
    draw(id, chart.data, chart.layout);
    await later();
  }
  drawCurves();
  if (selected !== null) markCurve();
  drawParallel();
  await later();
  spatial = true;
  drawFronts("#front-3d");
  for (const chart of document.querySelectorAll("#lineage, #curves, #population, .panel")) {
    if (chart.on) chart.on("plotly_click", (event) => select(event.points[0].customdata));
  }
  const rows = new Map(D.ids.map((id, i) => [id, i]));
  for (const row of document.querySelectorAll("#members-of-the-front tbody tr")) {
    const i = rows.get(row.cells[0].textContent.split(" ")[0]);
    if (i !== undefined) row.dataset.candidate = i;
  }
  const chosen = (event) => {
    const at = event.target.closest("[data-candidate]");
    if (at) select(Number(at.dataset.candidate), true);
  };
  document.addEventListener("click", chosen);
  document.addEventListener("keydown", (event) => { if (event.key === "Enter") chosen(event); });
  if (D.refresh) setTimeout(() => location.reload(), 1000 * D.refresh);
  document.body.dataset.ready = "yes";
}

start();
