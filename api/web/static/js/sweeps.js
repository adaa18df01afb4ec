// The page of a sweep: updated by the stream; lines and rows highlight each other, and axes filter trials.
import { sendForms } from "./actions.js";
import { address, refresh, throttled } from "./page.js";
import { Stream, showState } from "./stream.js";
import { visible } from "./text.js";

const sweep = document.getElementById("sweep");
const brushes = new Map(); // axis -> [from, to] in pixels of the drawing
const TOP = 56;
const BOTTOM = 304;

function lines() {
  return [...sweep.querySelectorAll("path.trial")];
}

function of(trial) {
  return sweep.querySelectorAll(`[data-trial="${trial}"]`);
}

// ---- highlighting

function point(trial) {
  for (const each of sweep.querySelectorAll(".pointed")) each.classList.remove("pointed");
  const readout = document.getElementById("readout");
  readout.textContent = visible(readout.dataset.hint);
  if (trial === undefined) return;
  for (const each of of(trial)) {
    each.classList.add("pointed");
    if (each.nodeName === "path") readout.textContent = visible(each.querySelector("title").textContent);
  }
}

/** The trial of the line nearest to the pointer, within a few pixels. */
function nearest(event) {
  const drawing = sweep.querySelector(".parallel").getBoundingClientRect();
  const at = { x: (100 * (event.clientX - drawing.left)) / drawing.width, y: event.clientY - drawing.top };
  const axes = [...sweep.querySelectorAll(".axis-words")].map((axis) => Number(axis.dataset.x));
  const right = axes.findIndex((x) => x >= at.x);
  if (right < 1) return undefined;
  const share = (at.x - axes[right - 1]) / (axes[right] - axes[right - 1]);
  let best = { distance: 12 };
  for (const line of lines().filter((each) => !each.classList.contains("out"))) {
    const heights = JSON.parse(line.dataset.heights);
    const [from, to] = [heights[right - 1], heights[right]];
    if (from === null || to === null) continue;
    const distance = Math.abs(from + share * (to - from) - at.y);
    if (distance <= best.distance) best = { distance, trial: line.dataset.trial };
  }
  return best.trial;
}

sweep.addEventListener("pointermove", (event) => {
  if (drawn) return;
  if (event.target.closest(".parallel")) point(nearest(event));
  else point(event.target.closest("tr[data-trial]")?.dataset.trial);
});
sweep.addEventListener("pointerleave", () => point());
sweep.addEventListener("focusin", (event) => point(event.target.closest("tr[data-trial]")?.dataset.trial));
sweep.addEventListener("click", (event) => {
  const trial = event.target.closest(".parallel") && !hasBrushed ? nearest(event) : undefined;
  if (trial !== undefined) sweep.querySelector(`#trial-${trial} a`).click();
});

// ---- brushing: a drag along an axis keeps the trials in between

let drawn = null;
let hasBrushed = false;

function axisAt(event) {
  const drawing = sweep.querySelector(".parallel").getBoundingClientRect();
  const near = [...sweep.querySelectorAll(".axis-words")].filter(
    (axis) => Math.abs((Number(axis.dataset.x) * drawing.width) / 100 - (event.clientX - drawing.left)) < 24,
  );
  return near[0]?.dataset.axis;
}

function height(event) {
  const y = event.clientY - sweep.querySelector(".parallel").getBoundingClientRect().top;
  return Math.min(BOTTOM + 6, Math.max(TOP - 6, y));
}

sweep.addEventListener("pointerdown", (event) => {
  hasBrushed = false;
  if (event.pointerType === "touch" || event.button !== 0 || !event.target.closest(".parallel")) return;
  const axis = axisAt(event);
  if (axis === undefined) return;
  drawn = { axis, from: height(event) };
  event.preventDefault();
});
window.addEventListener("pointermove", (event) => {
  if (!drawn) return;
  const to = height(event);
  if (Math.abs(to - drawn.from) < 4) return;
  hasBrushed = true;
  brushes.set(drawn.axis, [Math.min(drawn.from, to), Math.max(drawn.from, to)]);
  show();
});
window.addEventListener("pointerup", () => {
  if (drawn && !hasBrushed && brushes.delete(drawn.axis)) {
    hasBrushed = true; // a click on a brushed axis clears it and selects nothing
    show();
  }
  drawn = null;
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !brushes.size) return;
  brushes.clear();
  show();
});

function isKept(line) {
  const heights = JSON.parse(line.dataset.heights);
  return [...brushes].every(([axis, [from, to]]) => heights[axis] !== null && heights[axis] >= from && heights[axis] <= to);
}

function show() {
  const kept = new Set(lines().filter(isKept).map((line) => line.dataset.trial));
  for (const line of lines()) line.classList.toggle("out", !kept.has(line.dataset.trial));
  for (const row of sweep.querySelectorAll("tr[data-trial]")) {
    row.classList.toggle("out", brushes.size > 0 && !kept.has(row.dataset.trial));
  }
  drawBrushes();
  const readout = document.getElementById("readout");
  if (brushes.size) readout.textContent = visible(`${kept.size} of ${lines().length} trials; press Escape to show all`);
  else readout.textContent = visible(readout.dataset.hint);
}

function drawBrushes() {
  const drawing = sweep.querySelector(".parallel");
  for (const old of drawing.querySelectorAll(".brush")) old.remove();
  for (const [axis, [from, to]] of brushes) {
    const words = drawing.querySelector(`[data-axis="${axis}"]`);
    const mark = drawing.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "rect"));
    const facts = { class: "brush", x: `${Number(words.dataset.x) - 0.5}%`, y: from, width: "1%", height: to - from };
    for (const [name, value] of Object.entries(facts)) mark.setAttribute(name, value);
  }
}

// ---- live

async function update() {
  await refresh(address(`/sweeps/${sweep.dataset.sweep}/live${location.search}`));
  if (brushes.size) show();
  if (isOver()) showState("over");
}

function isOver() {
  return document.getElementById("sweep-summary").dataset.status !== "running";
}

const updateSoon = throttled(update, 1500);
sendForms({ done: updateSoon });
if (!isOver()) {
  // The stream announces changes of all jobs and sweeps.
  new Stream("", {
    on: { changed: () => isOver() || updateSoon() },
    onState: (state) => isOver() || showState(state),
    onOpen: updateSoon,
  });
}
