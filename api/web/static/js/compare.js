// The curves of several jobs: one chart per metric, one line per job in the colour of its configuration.
import { AXES, Axis } from "./axes.js";
import { number, percent } from "./format.js";
import { factsOf, isOurs } from "./metrics.js";
import { address } from "./page.js";
import { PlotFigure, colour, isSparse, smoothed } from "./plot.js";
import { visible } from "./text.js";
import { View } from "./view.js";

const MAX_POINTS = 1000; // per chart, shared by its lines
const MAX_CHARTS = 40;
const FIRST = ["eval/knn_top1", "eval/view_top1", "weak/pair_precision", "weak/view_agreement", "train/loss_instance", "train/loss"];

const place = document.getElementById("charts");
const source = document.getElementById("comparison").dataset.source ?? "/v1/jobs"; // a shared link has one of its own
const view = new View(document.getElementById("chart-tools"), viewed);
const members = [...document.querySelectorAll("[data-job]")].map((link) => ({
  id: link.dataset.job,
  link,
  isReference: Boolean(link.closest("#reference")),
  name: `${link.closest("li").querySelector("h2").textContent}, ${link.textContent}`,
  facts: { stepsPerEpoch: Number(link.dataset.stepsPerEpoch), batchSize: Number(link.dataset.batchSize), times: [] },
  series: new Map(),
  lengths: new Map(), // of the whole series, by name
}));
const perLine = Math.max(1, Math.floor(MAX_POINTS / members.length));
const charts = new Map();
let requests = 0; // only the newest request is shown

function axisOf({ facts }) {
  return new Axis(view.x, facts);
}

async function seriesOf(member, isFirst) {
  const query = new URLSearchParams({ max_points: perLine });
  const axis = axisOf(member);
  if (isFirst) query.set("times", "true");
  else if (view.from !== null) query.set("from_step", Math.max(0, Math.floor(axis.step(view.from))));
  if (!isFirst && view.to !== null) query.set("to_step", Math.max(0, Math.ceil(axis.step(view.to))));
  const response = await fetch(address(`${source}/${member.id}/metrics?${query}`));
  if (!response.ok) throw new Error(`${member.id}: ${response.status}`);
  const { series, times } = await response.json();
  if (times) member.facts.times = times.map(({ step, at }) => [step, Date.parse(at)]);
  return new Map(series.map(({ name, points }) => [name, points]));
}

class Chart extends PlotFigure {
  constructor(name, lines) {
    const isDiagnostic = isOurs(name) && !FIRST.includes(name);
    const kind = { ...factsOf(name), name, isExplained: isDiagnostic, height: 220, sync: "compare", lines };
    super(kind, view, isDiagnostic ? document.getElementById("diagnostics-charts") : place);
    this.format = this.isShare ? percent : number;
    this.figure.dataset.metrics = name;
    this.figure.dataset.lines = String(lines.length);
    const latest = lines.map((member) => `${member.name} ${this.format(member.series.get(name).at(-1).value)}`);
    this.canvas.setAttribute("aria-label", visible(`${this.title}, latest: ${latest.join("; ")}`));
    this.draw();
  }

  points(member) {
    return member.series.get(this.name) ?? [];
  }

  tables() {
    this.figure.dataset.points = String(Math.max(...this.lines.map((member) => this.points(member).length)));
    return this.lines.map((member) => {
      const [axis, points] = [axisOf(member), this.points(member)];
      const weight = isSparse(member.lengths.get(this.name) ?? 0, perLine) ? 0 : view.smooth;
      return [points.map(({ step }) => axis.x(step)), smoothed(points.map(({ value }) => value), weight)];
    });
  }

  series() {
    return this.lines.map((member) => ({
      label: member.name,
      stroke: () => colour("--mark", member.link),
      width: 1.5,
      points: { show: () => isSparse(this.points(member).length, perLine), size: 4 },
    }));
  }

  bands() {
    return [];
  }

  hooks() {
    return { setSeries: [(plot, at) => this.read(at)] };
  }

  options() {
    const options = super.options();
    return { ...options, padding: [12, 12, 0, 0], cursor: { ...options.cursor, focus: { prox: 24 } }, focus: { alpha: 0.3 } };
  }

  /** Show name and value of the line nearest to the cursor. */
  read(at = this.at) {
    this.at = at;
    const index = this.cursor;
    const value = at && index !== null ? this.plot.data[at][index] : null;
    const where = value == null ? "" : AXES[view.x].format(this.plot.data[0][index]);
    this.readout.textContent = visible(where && `${this.lines[at - 1].name}: ${this.format(value)} at ${where}`);
  }

  legend() {
    return this.lines.map(({ name, link }) => ({ label: name, token: "--mark", element: link }));
  }

  rows() {
    const head = ["job", "name", "metric", "attempt", "step", ...(view.x === "step" ? [] : [view.x]), "value", "min", "max"];
    const rows = this.lines.flatMap((member) =>
      this.points(member).map(({ attempt, step, value, min, max }) => {
        const x = view.x === "step" ? [] : [axisOf(member).x(step)];
        return [member.id, member.name, this.name, attempt, step, ...x, value, min, max];
      }),
    );
    return [head, ...rows];
  }
}

function names() {
  const all = [...new Set(members.flatMap(({ series }) => [...series.keys()]))].sort();
  const others = all.filter((name) => !FIRST.includes(name) && !name.startsWith("system/"));
  return [...FIRST.filter((name) => all.includes(name)), ...others].slice(0, MAX_CHARTS);
}

async function load(isFirst) {
  const ticket = ++requests;
  const series = await Promise.all(members.map((member) => seriesOf(member, isFirst)));
  if (ticket !== requests) return;
  members.forEach((member, at) => (member.series = series[at]));
}

async function start() {
  await load(true);
  for (const member of members) member.lengths = new Map([...member.series].map(([name, points]) => [name, points.length]));
  for (const name of names()) {
    const lines = members.filter(({ series }) => series.get(name)?.length);
    if (lines.some(({ isReference }) => !isReference)) charts.set(name, new Chart(name, lines));
  }
  const state = document.getElementById("charts-state");
  state.hidden = charts.size > 0;
  document.getElementById("diagnostics").hidden = !document.querySelector("#diagnostics figure");
  document.getElementById("chart-tools").hidden = !state.hidden;
  state.textContent = "No metrics yet.";
  document.addEventListener("themechange", () => charts.forEach((chart) => chart.redraw()));
  if (view.isZoomed) await part();
}

async function part() {
  await load(false);
  charts.forEach((chart) => chart.update());
}

function viewed(before) {
  if (before.from !== view.from || before.to !== view.to) part().catch(console.debug);
  charts.forEach((chart) => chart.draw());
}

start().catch((error) => {
  console.debug(error);
  document.getElementById("charts-state").textContent = "The curves could not be loaded. Reload the page.";
});
