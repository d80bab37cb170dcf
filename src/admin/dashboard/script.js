
"use strict";
const KEEP = 120;
const SHOWN_DECISIONS = 20;
/* Milliseconds: without a word from a stream, and until another one is tried. */
const SILENCE = 5000;
const RETRY = 30000;
const byId = (id) => document.getElementById(id);
const show = (id, text) => { const at = byId(id); if (at.textContent !== text) at.textContent = text; };
const isKnown = (value) => value !== null && value !== undefined;
const known = (value, format) => !isKnown(value) ? "–" : format ? format(value) : String(value);
const list = (value) => Array.isArray(value) ? value : [];
const rounded = (value) => value >= 100 ? value.toFixed(0) : String(Number(value.toFixed(value >= 10 ? 1 : 2)));
const millis = (seconds) => seconds >= 1 ? rounded(seconds) + " s" : rounded(seconds * 1000) + " ms";
const percent = (share) => Math.round(share * 100) + " %";
const times = (ratio) => ratio.toFixed(2) + " ×";
const duration = (seconds) => {
  const whole = Math.floor(seconds);
  if (whole < 60) return whole + " s";
  if (whole < 3600) return Math.floor(whole / 60) + " min";
  if (whole < 86400) return Math.floor(whole / 3600) + " h";
  return Math.floor(whole / 86400) + " d";
};
const state = (text, bad) => { show("state", text); byId("state").className = bad ? "bad" : ""; };
const element = (parent, name, attributes, text) => {
  const made = document.createElementNS(parent.namespaceURI, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  parent.appendChild(made);
  return made;
};
/* Windows that changed nothing for the same reason are one line. */
const grouped = (decisions) => {
  const groups = [];
  for (const decision of decisions) {
    const before = groups[groups.length - 1];
    const same = before && decision.from === decision.limit && before.decision.from === before.decision.limit
      && ["endpoint", "limit", "reason", "bound_by"].every((key) => decision[key] === before.decision[key]);
    if (same) before.count += 1;
    else groups.push({ decision, count: 1 });
  }
  return groups;
};
const row = (cells, left) => {
  const made = document.createElement("tr");
  cells.forEach((text, at) => {
    const cell = made.appendChild(document.createElement("td"));
    cell.textContent = text;
    if (left && left.includes(at)) cell.className = "left";
  });
  return made;
};

const history = [];
let last = null;
let chosen = null;

/* The next round number above a value, for the top of an axis. */
const ceiling = (value) => {
  if (!(value > 0)) return 1;
  const power = Math.pow(10, Math.floor(Math.log10(value)));
  return [1, 2, 5, 10].map((step) => step * power).find((round) => round >= value * 0.999);
};

const frame = (svg, top, bottom, unit, right) => {
  const width = svg.clientWidth || 400, height = svg.clientHeight || 160;
  svg.setAttribute("viewBox", "0 0 " + width + " " + height);
  svg.replaceChildren();
  const left = 36, floor = height - 18, high = 8;
  const x = (share) => left + share * (width - left - 8);
  const y = (value) => floor - (value - bottom) / (top - bottom || 1) * (floor - high);
  for (const value of [bottom, (bottom + top) / 2, top]) {
    element(svg, "line", { class: "grid", x1: left, x2: width - 8, y1: y(value), y2: y(value) });
    element(svg, "text", { x: left - 4, y: y(value) + 4, "text-anchor": "end" }, rounded(value));
  }
  element(svg, "text", { x: left, y: height - 4 }, unit);
  element(svg, "text", { x: width - 8, y: height - 4, "text-anchor": "end" }, right);
  return { x, y };
};

const drawLines = (id, series, bottom, label) => {
  const svg = byId(id);
  let most = bottom;
  for (const [, of] of series) for (const point of history) most = Math.max(most, of(point) || 0);
  const { x, y } = frame(svg, ceiling(most), bottom, "2 min ago", "now");
  for (const [name, of] of series) {
    const points = [];
    history.forEach((point, at) => {
      const value = of(point);
      if (isKnown(value)) points.push(x((KEEP - history.length + at) / (KEEP - 1)).toFixed(1) + "," + y(Math.max(value, bottom)).toFixed(1));
    });
    if (points.length) element(svg, "polyline", { class: name, points: points.join(" ") });
  }
  svg.setAttribute("aria-label", label);
};

const drawCurve = (endpoint, answered) => {
  const svg = byId("chart_curve");
  const points = endpoint ? list(endpoint.capacity_curve).filter((spot) => isKnown(spot.throughput)) : [];
  if (!points.length) {
    svg.replaceChildren();
    element(svg, "text", { x: 8, y: 24 }, "Not learned yet: traffic draws it.");
    svg.setAttribute("aria-label", "The capacity curve is not learned yet");
    show("capacity", "");
    return;
  }
  const most = Math.max(...points.map((spot) => spot.in_flight), endpoint.limit);
  const widest = ceiling(most);
  const top = ceiling(Math.max(...points.map((spot) => spot.throughput)));
  const { x, y } = frame(svg, top, 0, "0 in flight", String(widest));
  const place = (spot) => x(spot.in_flight / widest).toFixed(1) + "," + y(spot.throughput).toFixed(1);
  element(svg, "polyline", { class: "s1", points: points.map(place).join(" ") });
  for (const spot of points) element(svg, "circle", { class: "dot", r: 3, cx: x(spot.in_flight / widest), cy: y(spot.throughput) });
  const limit = x(endpoint.limit / widest);
  element(svg, "line", { class: "s2", x1: limit, x2: limit, y1: y(0), y2: y(top) });
  element(svg, "text", { x: limit - 4, y: y(top) + 10, "text-anchor": "end" }, "limit " + endpoint.limit);
  if (isKnown(answered)) element(svg, "circle", { class: "now", r: 5, cx: x(Math.min(1, endpoint.in_flight / widest)), cy: y(Math.min(top, answered)) });
  svg.setAttribute("aria-label", "Capacity curve: " + points.map((spot) => rounded(spot.throughput) + " a second with " + rounded(spot.in_flight) + " in flight").join(", "));
  const fit = endpoint.capacity;
  show("capacity", !fit ? "" : "By the Universal Scalability Law: " + (isKnown(fit.peak_in_flight)
    ? "at most " + known(fit.peak_throughput, rounded) + " a second, with " + rounded(fit.peak_in_flight) + " in flight"
    : "no peak in sight") + " (confidence " + known(fit.confidence, percent) + ").");
};

function draw(status) {
  const totals = status.totals || {}, traffic = status.traffic || {};
  const at = status.uptime_seconds;
  const refused = status.dry_run ? "would_refuse" : "refused";
  if (status.draining) state("draining", true);
  else state(status.ready ? (status.dry_run ? "ready, dry run: nothing is refused" : "ready") : "not ready", !status.ready);
  show("about", "version " + known(status.version) + ", up " + known(at, duration));
  for (const id of ["limit", "in_flight", "queued", "queue_capacity"]) show(id, known(status[id]));
  show("saturated", known(status.saturation_ratio, percent));
  show("bound", known(status.bound_by));
  show("sentence", status.bound_by_sentence || "");
  show("refused_name", status.dry_run ? "Would refuse" : "Refused");
  /* Without the refusals, which take next to no time. */
  const latency = traffic.backend_seconds || {};
  show("p50", known(latency.p50, millis));
  show("p99", known(latency.p99, millis));
  const endpoints = list((status.backend || {}).endpoints);
  const point = {
    in_flight: status.in_flight, limit: status.limit, queued: status.queued,
    stretch: endpoints.reduce((most, endpoint) => isKnown(endpoint.stretch_ratio) ? Math.max(most ?? 0, endpoint.stretch_ratio) : most, null),
  };
  if (last && at > last.at) {
    point.answered = (totals.answered_by_backend - last.totals.answered_by_backend) / (at - last.at);
    point.refused = (totals[refused] - last.totals[refused]) / (at - last.at);
    show("answered", rounded(point.answered));
    show("refused", rounded(point.refused));
  }
  last = { at, totals };
  history.push(point);
  if (history.length > KEEP) history.shift();
  drawLines("chart_load", [["s3", (p) => p.queued], ["s2", (p) => p.limit], ["s1", (p) => p.in_flight]], 0,
    known(point.in_flight) + " in flight, limit " + known(point.limit) + ", " + known(point.queued) + " queued");
  drawLines("chart_rate", [["s4", (p) => p.refused], ["s1", (p) => p.answered]], 0,
    known(point.answered, rounded) + " answered and " + known(point.refused, rounded) + " refused a second");
  drawLines("chart_stretch", [["s1", (p) => p.stretch]], 1, "stretch " + known(point.stretch, times));

  const choice = byId("endpoint");
  const names = endpoints.map((endpoint) => endpoint.endpoint);
  if (names.join() !== [...choice.options].map((option) => option.value).join()) {
    choice.replaceChildren(...names.map((name) => new Option(name, name)));
    choice.hidden = names.length < 2;
    if (!names.includes(chosen)) chosen = names[0];
    choice.value = chosen;
  }
  drawCurve(endpoints.find((endpoint) => endpoint.endpoint === chosen), endpoints.length === 1 ? point.answered : null);
  byId("endpoints").replaceChildren(...endpoints.map((endpoint) => row([
    endpoint.endpoint, endpoint.up ? "yes" : "no", known(endpoint.in_flight), known(endpoint.limit),
    known(endpoint.slots), known(endpoint.slots_source), known(endpoint.bound_by),
    known(endpoint.baseline_seconds, millis), known(endpoint.stretch_ratio, times),
  ])));
  const reasons = Object.entries(status.refusals || {}).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
  const chips = (reasons.length ? reasons.map(([reason, count]) => reason + " " + count) : ["none so far"]).map((text) => {
    const chip = document.createElement("li");
    chip.textContent = text;
    return chip;
  });
  byId("refusals").replaceChildren(...chips);
  byId("decisions").replaceChildren(...grouped(list(status.decisions)).slice(0, SHOWN_DECISIONS).map(({ decision, count }) => {
    const evidence = decision.evidence || {};
    const moved = decision.from === decision.limit ? String(decision.limit) : decision.from + " → " + decision.limit;
    return row([known(decision.age_seconds, duration), moved, known(decision.bound_by), known(evidence.stretch, times),
      known(evidence.samples), decision.reason + (count > 1 ? " ×" + count : "") + ": " + (decision.explanation || "")], [5]);
  }));
}

function drawConfig(config) {
  const rows = [];
  const walk = (path, node) => {
    if (Array.isArray(node)) node.forEach((inner, at) => walk(path + "[" + at + "]", inner));
    else if (node && typeof node === "object" && "value" in node && "origin" in node) rows.push(row([path, JSON.stringify(node.value), node.origin], [1, 2]));
    else if (node && typeof node === "object") for (const key in node) walk(path ? path + "." + key : key, node[key]);
  };
  walk("", config);
  byId("settings").replaceChildren(...rows);
}

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", headers: { Accept: "application/json" }, signal: AbortSignal.timeout(5000) });
  if (!answer.ok) throw new Error("status " + answer.status);
  return answer.json();
}

/* The server sends the status once a second. Where it has no place for one more stream, or a proxy keeps
   the events back, the page asks for it instead, and tries again later. */
let stream = null;
let heard = 0;
let retryAt = 0;

function listen() {
  heard = Date.now();
  stream = new EventSource("/status");
  stream.onmessage = (event) => {
    heard = Date.now();
    draw(JSON.parse(event.data));
  };
  stream.onerror = () => {
    /* Refused: the figures can be had all the same. */
    if (stream.readyState === EventSource.CLOSED) return hangUp();
    last = null;
    state("no answer", true);
  };
}

function hangUp() {
  if (stream) stream.close();
  stream = null;
  retryAt = Date.now() + RETRY;
}

async function tick() {
  if (document.hidden) {
    if (stream) hangUp();
    retryAt = 0;
  } else {
    if (stream && Date.now() - heard > SILENCE) hangUp();
    if (!stream && Date.now() >= retryAt) listen();
    else if (!stream) {
      try {
        draw(await get("/status"));
      } catch (error) {
        last = null;
        state("no answer", true);
      }
    }
  }
  setTimeout(tick, 1000);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden && !stream) listen(); });
byId("endpoint").addEventListener("change", (event) => { chosen = event.target.value; });
byId("config").addEventListener("toggle", async (event) => {
  if (!event.target.open) return;
  try {
    drawConfig(await get("/config"));
  } catch (error) {
    byId("settings").replaceChildren(row(["no answer", "", ""]));
  }
});
tick();
