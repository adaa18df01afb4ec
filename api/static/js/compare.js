// The curves of several jobs over each other: one chart a metric, one line a job in the colour of its arm.
import { colour, shareRange, tickOf } from "./charts.js";
import { number, percent, short } from "./format.js";

const MAX_POINTS = 1000; // of a chart, shared by its lines
const MAX_CHARTS = 40;
const HEIGHT = 220;
const FIRST = ["train/loss", "eval/knn_top1", "weak/pair_precision", "train/loss_instance", "train/loss_weak"];

const place = document.getElementById("charts");
const members = [...document.querySelectorAll("[data-job]")].map((link) => ({
  id: link.dataset.job,
  arm: Number(link.dataset.arm),
  name: `${link.closest("li").querySelector("h2").textContent}, ${link.textContent}`,
}));

async function seriesOf({ id }) {
  const share = Math.max(1, Math.floor(MAX_POINTS / members.length));
  const answer = await fetch(`/v1/jobs/${id}/metrics?max_points=${share}`);
  if (!answer.ok) throw new Error(`${id}: ${answer.status}`);
  const { series } = await answer.json();
  return new Map(series.map(({ name, points }) => [name, points]));
}

function isShare(name) {
  return /top1$|precision(_chance)?$|agreement$/.test(name);
}

class Chart {
  constructor(name, lines) {
    Object.assign(this, { name, lines, format: isShare(name) ? percent : number });
    const figure = place.appendChild(document.createElement("figure"));
    figure.className = "chart panel";
    figure.dataset.metrics = name;
    figure.dataset.lines = String(lines.length);
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.appendChild(document.createElement("h3")).textContent = name;
    this.readout = caption.appendChild(document.createElement("p"));
    this.canvas = figure.appendChild(document.createElement("div"));
    this.canvas.className = "canvas";
    this.canvas.setAttribute("role", "img");
    const latest = lines.map(({ member, points }) => `${member.name} ${this.format(points.at(-1).value)}`);
    this.canvas.setAttribute("aria-label", `${name}, latest: ${latest.join("; ")}`);
    const tables = lines.map(({ points }) => [points.map(({ step }) => step), points.map(({ value }) => value)]);
    this.plot = new window.uPlot(this.options(), window.uPlot.join(tables), this.canvas);
    new ResizeObserver(() => this.resize()).observe(this.canvas);
  }

  options() {
    const axis = {
      stroke: () => colour("--text-3"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { show: false },
    };
    const series = this.lines.map(({ member, points }) => ({
      label: member.name,
      stroke: () => colour(`--arm-${member.arm}`),
      width: 1.5,
      points: { show: points.length < 20, size: 4 },
    }));
    return {
      width: this.canvas.clientWidth || 360,
      height: HEIGHT,
      series: [{}, ...series],
      legend: { show: false },
      padding: [12, 12, 0, 0],
      scales: { x: { time: false }, ...(isShare(this.name) && { y: { range: shareRange } }) },
      axes: [
        { ...axis, size: 26, gap: 6, values: (plot, splits) => splits.map(short), space: 60 },
        { ...axis, size: 46, gap: 6, values: (plot, splits) => splits.map((v) => tickOf(v, isShare(this.name))), space: 34 },
      ],
      cursor: { y: false, sync: { key: "compare", scales: ["x", null] }, points: { size: 7 }, drag: { x: false }, focus: { prox: 24 } },
      focus: { alpha: 0.3 },
      hooks: { setSeries: [(plot, at) => this.read(at)], setCursor: [() => this.read(this.at)] },
    };
  }

  /** The line nearest to the cursor, by name and value. */
  read(at) {
    this.at = at;
    const index = this.plot?.cursor.idx ?? null;
    const value = at && index !== null ? this.plot.data[at][index] : null;
    this.readout.textContent = value == null ? "" : `${this.lines[at - 1].member.name}: ${this.format(value)} at step ${number(this.plot.data[0][index])}`;
  }

  resize() {
    const width = this.canvas.clientWidth;
    if (width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }
}

function names(found) {
  const all = [...new Set(found.flatMap((series) => [...series.keys()]))].sort();
  return [...FIRST.filter((name) => all.includes(name)), ...all.filter((name) => !FIRST.includes(name))].slice(0, MAX_CHARTS);
}

async function draw() {
  const found = await Promise.all(members.map(seriesOf));
  const charts = names(found).map((name) => {
    const lines = members.map((member, at) => ({ member, points: found[at].get(name) ?? [] }));
    return new Chart(name, lines.filter(({ points }) => points.length));
  });
  const state = document.getElementById("charts-state");
  state.hidden = charts.length > 0;
  state.textContent = "No metric was reported yet.";
  document.addEventListener("themechange", () => charts.forEach(({ plot }) => plot.redraw(false)));
}

draw().catch((error) => {
  console.debug(error);
  document.getElementById("charts-state").textContent = "The curves could not be loaded. Reload the page to try again.";
});
