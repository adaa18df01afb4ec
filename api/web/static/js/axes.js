// The x axes of charts: steps, epochs, images or time.
import { number, short } from "./format.js";

function span(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${Number(seconds.toPrecision(3))} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
}

function clock(seconds) {
  const size = Math.abs(seconds);
  if (size < 60) return `${Number(seconds.toPrecision(3))}s`;
  if (size < 3600) return `${Number((seconds / 60).toPrecision(3))}min`;
  return `${Number((seconds / 3600).toPrecision(3))}h`;
}

export const AXES = {
  step: { label: "Steps", format: (x) => `step ${number(Math.round(x))}`, tick: short },
  epoch: { label: "Epochs", format: (x) => `epoch ${Number(x.toFixed(2))}`, tick: short },
  images: { label: "Images", format: (x) => `${short(x)} images`, tick: short },
  time: { label: "Time since the first report", format: span, tick: clock },
};

/** The axis of one job; `facts` are `stepsPerEpoch`, `batchSize` and `times` as [step, milliseconds]. */
export class Axis {
  constructor(kind, facts) {
    Object.assign(this, { kind, facts });
  }

  /** The length of one step on a proportional axis. */
  get scale() {
    if (this.kind === "epoch") return 1 / (this.facts.stepsPerEpoch || 1);
    return this.kind === "images" ? this.facts.batchSize || 1 : 1;
  }

  x(step) {
    if (this.kind !== "time") return step * this.scale;
    const { times } = this.facts;
    return times.length ? (between(times, 0, 1, step) - times[0][1]) / 1000 : step;
  }

  step(x) {
    if (this.kind !== "time") return x / this.scale;
    const { times } = this.facts;
    return times.length ? between(times, 1, 0, times[0][1] + 1000 * x) : x;
  }
}

/** Interpolate column `to` at `value` of column `from` linearly; constant beyond the ends. */
function between(rows, from, to, value) {
  let [low, high] = [0, rows.length - 1];
  if (value <= rows[low][from]) return rows[low][to];
  if (value >= rows[high][from]) return rows[high][to];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (rows[middle][from] <= value) low = middle;
    else high = middle;
  }
  const share = (value - rows[low][from]) / (rows[high][from] - rows[low][from] || 1);
  return rows[low][to] + share * (rows[high][to] - rows[low][to]);
}
