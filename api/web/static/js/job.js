// The page of a job: the stream extends curves and log; all other parts are fetched as rendered HTML when they change.
import { sendForms } from "./actions.js";
import { Axis } from "./axes.js";
import { Bell } from "./bell.js";
import { Chart } from "./charts.js";
import { Curves } from "./curves.js";
import { groupsOf } from "./groups.js";
import { Tail } from "./logs.js";
import { address, notify, now, refresh, throttled } from "./page.js";
import { Stream, showState } from "./stream.js";
import { visible } from "./text.js";
import { View } from "./view.js";

const MAX_POINTS = 500; // per series, for a chart about 400 pixels wide
const RELOAD_AFTER = 2000; // streamed points per series, after which the downsampled curves are loaded again
const OVER = new Set(["succeeded", "failed", "cancelled"]);

const run = document.getElementById("run");
const jobId = run.dataset.job;
const place = document.getElementById("charts");
const title = document.title;
const tail = document.getElementById("log") && new Tail(); // the log of a job that is over may be empty
const updateParts = throttled(async () => {
  await refresh(address(`/jobs/${jobId}/live`));
  draw(); // the summary has what the accuracy must beat
}, 800);

// ---- curves

const curves = new Curves();
const charts = new Map();
const view = place && new View(document.getElementById("chart-tools"), viewed);
const facts = { stepsPerEpoch: Number(place?.dataset.stepsPerEpoch), batchSize: Number(place?.dataset.batchSize), times: [] };
const earlier = JSON.parse(place?.dataset.earlier ?? "[]"); // [id, last step, relation] of the jobs that it goes on from, the nearest first
const source = { all: curves, shown: curves, earlier: null, reference: null, joints: earlier.map(([, step, words]) => [step, words]), axis: place && new Axis(view.x, facts) };
const pinned = document.getElementById("reference");
let isLoading = false;
let waiting = []; // points streamed while the curves are loading
let isDrawing = false;
let requests = 0; // only the newest request is shown

async function json(path) {
  const response = await fetch(address(path));
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

async function load() {
  if (!place || isLoading) return;
  isLoading = true;
  try {
    const [{ items }, { series, times }] = await Promise.all([
      json(`/v1/jobs/${jobId}/attempts`),
      json(`/v1/jobs/${jobId}/metrics?max_points=${MAX_POINTS}&times=true`),
    ]);
    facts.times = times.map(({ step, at }) => [step, Date.parse(at)]);
    curves.load(series, items);
    curves.add(waiting);
    if (earlier.length) source.earlier ??= await before();
    if (pinned) source.reference ??= await reference();
    if (view.isZoomed && source.shown === curves) await detail();
    draw();
  } catch (error) {
    console.debug(error);
    setTimeout(load, 2000);
  } finally {
    waiting = [];
    isLoading = false;
  }
}

/** Load the curves of the earlier jobs as one; without those of a job that is deleted. */
async function before() {
  const joined = new Curves();
  for (const [id, step] of [...earlier].reverse()) {
    const { series } = await json(`/v1/jobs/${id}/metrics?max_points=${MAX_POINTS}&to_step=${step}`).catch(() => ({ series: [] }));
    for (const { name, points } of series) {
      for (const point of points) joined.curve(name).add(point.attempt, point.step, point.value, point.min, point.max);
    }
  }
  return joined;
}

/** Load the curves of the reference, with facts for an axis of its own; none if it was deleted. */
async function reference() {
  const { id, batchSize, stepsPerEpoch } = pinned.dataset;
  const { series, times } = await json(`/v1/jobs/${id}/metrics?max_points=${MAX_POINTS}&times=true`).catch(() => ({ series: [], times: [] }));
  const curves = new Curves();
  curves.load(series, []);
  const facts = { batchSize: Number(batchSize), stepsPerEpoch: Number(stepsPerEpoch), times: times.map(({ step, at }) => [step, Date.parse(at)]) };
  return { curves, facts };
}

/** Load the visible range at a higher resolution. */
async function detail() {
  const number = ++requests;
  if (!view.isZoomed) {
    source.shown = curves;
    return draw();
  }
  const query = new URLSearchParams({ max_points: MAX_POINTS });
  if (view.from !== null) query.set("from_step", Math.max(0, Math.floor(source.axis.step(view.from))));
  if (view.to !== null) query.set("to_step", Math.max(0, Math.ceil(source.axis.step(view.to))));
  const { series } = await json(`/v1/jobs/${jobId}/metrics?${query}`);
  if (number !== requests) return;
  const part = new Curves();
  part.load(series, []);
  part.last = view.to === null ? Infinity : source.axis.step(view.to);
  source.shown = part;
  draw();
}

function viewed(before) {
  source.axis = new Axis(view.x, facts);
  if (before.from !== view.from || before.to !== view.to) detail().catch(console.debug);
  charts.forEach((chart) => chart.draw());
}

function take({ points }) {
  if (isLoading) waiting.push(...points);
  curves.add(points);
  if (points.length) facts.times.push([Math.max(...points.map(({ step }) => step)), now()]);
  if (source.shown !== curves) source.shown.add(points.filter(({ step }) => step <= source.shown.last));
  if (curves.numAdded > RELOAD_AFTER) load();
  else draw();
}

function draw() {
  if (!place || isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    const groups = groupsOf(curves);
    const state = document.getElementById("charts-state");
    const [main, diagnostics] = [false, true].map((side) => groups.filter((group) => !group.isHardware && !!group.isDiagnostic === side));
    state.hidden = main.length + diagnostics.length > 0;
    document.getElementById("diagnostics").hidden = !diagnostics.length;
    for (const id of ["charts-hint", "chart-tools"]) document.getElementById(id).hidden = !state.hidden;
    state.textContent = visible(OVER.has(run.dataset.status) ? "No metrics were reported." : "Curves appear with the first report.");
    drawAll(main, place);
    drawAll(diagnostics, document.getElementById("diagnostics-charts"));
    const hardware = document.getElementById("hardware-charts");
    if (hardware) drawAll(groups.filter((group) => group.isHardware), hardware);
  });
}

function drawAll(groups, target) {
  for (const group of groups) {
    const [key] = group.lines[0];
    const chart = charts.get(key);
    if (chart) chart.update();
    else charts.set(key, new Chart(group, source, view, target));
  }
  // A new group may belong before existing charts.
  const isMisplaced = (figure, position) => target.querySelectorAll("figure")[position] !== figure;
  target.append(...groups.map((group) => charts.get(group.lines[0][0]).figure).filter(isMisplaced));
}

if (place) {
  place.curves = curves; // for tests
  document.addEventListener("themechange", () => charts.forEach((chart) => chart.redraw()));
  load();
}

// ---- stream

function isOver(job) {
  run.dataset.status = job.status;
  if (job.status === "running") delete run.dataset.waits;
  return OVER.has(job.status);
}

async function end() {
  stream.end();
  document.title = visible(`${run.dataset.status} · ${title}`);
  await updateParts();
}

const stream = new Stream(jobId, {
  after: run.dataset.cursor,
  onState: showState,
  onOpen: updateParts,
  on: {
    job: (job) => {
      isOver(job);
      updateParts();
    },
    deleted: () => location.reload(), // shows that the job is absent
    event: (event) => {
      if (event.type === "started") curves.start(event.data.attempt, event.data.start_step);
      updateParts();
    },
    progress: ({ step, total_steps, total_epochs }) => {
      if (total_steps && total_epochs) facts.stepsPerEpoch = total_steps / total_epochs;
      if (total_steps) document.title = visible(`${Math.floor((100 * step) / total_steps)}% · ${title}`);
      updateParts();
    },
    metrics: take,
    logs: ({ lines }) => tail?.append(lines),
    end: (job) => {
      isOver(job);
      end();
    },
  },
});

if (OVER.has(run.dataset.status)) stream.end();

// ---- buttons

const bell = document.getElementById("bell");
if (bell) new Bell(bell, { id: jobId, name: run.dataset.name, event: Number(run.dataset.event) });

sendForms({ created: ({ id }) => (id ? location.assign(address(`/jobs/${id}`)) : notify("Submitted; the results appear here.")), done: updateParts });
