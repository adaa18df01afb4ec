// The charts of a job: one plot per group of metrics, updated with its curves.
import { AXES, Axis } from "./axes.js";
import { number, percent } from "./format.js";
import { PlotFigure, colour, faded, isSparse, smoothed } from "./plot.js";
import { text, visible } from "./text.js";

const LEVELS = { untrained: "untrained", chance: "largest class" };
const COLUMNS = 4; // per line: drawn value, minimum, maximum, and raw value behind a smoothed line

/** The label of marks that share one: what ends or begins there, then the numbers of the attempts, runs of them in short. */
function named(marks) {
  const words = [...new Set(marks.flatMap((mark) => mark.words ?? []))];
  const numbers = marks.flatMap((mark) => mark.attempt ?? []).sort((one, other) => one - other);
  const runs = [];
  for (const number of numbers) {
    if (runs.length && runs.at(-1)[1] === number - 1) runs.at(-1)[1] = number;
    else runs.push([number, number]);
  }
  const shown = runs.map(([first, last]) => (first === last ? `${first}` : `${first}–${last}`)).join(", ");
  return [...words, ...(shown ? [`attempt${numbers.length > 1 ? "s" : ""} ${shown}`] : [])].join(", ");
}

export class Chart extends PlotFigure {
  /** @param {object} source `shown`: the curves to draw; `all`: the curves of the whole job; `axis`: the axis of the job;
   *  `earlier`: the curves of the jobs that it goes on from, or null; `joints`: the steps where they end, with words;
   *  `reference`: the curves of the reference and the facts of its axis, or null. */
  constructor(group, source, view, place) {
    const { title, about, lines, isShare, levels = [], isDiagnostic } = group;
    const kind = { title, about, isShare, levels, isExplained: isDiagnostic };
    super({ ...kind, height: 190, sync: "charts", group: lines, source }, view, place);
    this.format = isShare ? percent : number;
    this.figure.dataset.metrics = lines.map(([name]) => name).join(" ");
    this.draw();
    this.mark();
  }

  /** The curve of a metric; undefined if it has no point in the visible range. */
  curve(name) {
    return this.source.shown.byName.get(name);
  }

  /** Sparse curves are not smoothed: of an accuracy measured five times, each value matters. */
  isSmoothed(name) {
    return this.view.smooth > 0 && !isSparse(this.source.all.byName.get(name)?.length ?? 0);
  }

  /** The curves of earlier jobs; null if there are none, or if the axis is the time, which has gaps between jobs. */
  get earlier() {
    return this.source.axis.kind === "time" ? null : this.source.earlier;
  }

  /** A metric of the earlier jobs, up to the first point of this one. */
  earlierTable(name) {
    const { axis, all } = this.source;
    const { steps = [], values = [] } = this.earlier.byName.get(name) ?? {};
    const own = all.byName.get(name);
    const isJoined = steps.length && own?.length && own.steps[0] > steps.at(-1);
    const [xs, ys] = isJoined ? [[...steps, own.steps[0]], [...values, own.values[0]]] : [steps, values];
    return [xs.map((step) => axis.x(step)), smoothed(ys, isSparse(ys.length) ? 0 : this.view.smooth)];
  }

  /** A metric of the reference, on the axis of its own steps. */
  referenceTable(name) {
    const { curves, facts } = this.source.reference;
    const axis = new Axis(this.view.x, facts);
    const { steps = [], values = [] } = curves.byName.get(name) ?? {};
    return [steps.map((step) => axis.x(step)), smoothed(values, isSparse(values.length) ? 0 : this.view.smooth)];
  }

  tables() {
    const { axis } = this.source;
    const own = this.group.map(([name]) => {
      const { steps = [], values = [], lows = [], highs = [] } = this.curve(name) ?? {};
      return [steps.map((step) => axis.x(step)), smoothed(values, this.isSmoothed(name) ? this.view.smooth : 0), lows, highs, values];
    });
    const before = this.earlier ? this.group.map(([name]) => this.earlierTable(name)) : [];
    return [...own, ...before, ...(this.source.reference ? this.group.map(([name]) => this.referenceTable(name)) : [])];
  }

  series() {
    const hidden = { stroke: "transparent", width: 0, points: { show: false } };
    const own = this.group.flatMap(([name, label], place) => {
      const isChance = label === "chance";
      const token = tokenOf(label, place);
      const points = { show: () => isSparse(this.curve(name)?.length ?? 0) && !isChance, size: 4, fill: () => colour(token) };
      const line = { label, stroke: () => colour(token), width: 1.75, dash: isChance ? [4, 4] : undefined, points };
      const behind = this.isSmoothed(name) ? { ...hidden, stroke: () => faded(token, 0.3), width: 1 } : { ...hidden };
      return [line, { ...hidden }, { ...hidden }, behind];
    });
    const lighter = this.group.map(([, label], place) => ({ label, stroke: () => faded(tokenOf(label, place), 0.5), width: 1.75, points: { show: false } }));
    const grey = this.group.map(([, label]) => ({ label: `reference, ${label}`, stroke: () => faded("--curve-3", 0.8), width: 1.25, points: { show: false } }));
    return [...own, ...(this.earlier ? lighter : []), ...(this.source.reference ? grey : [])];
  }

  bands() {
    return this.group.map(([, label], place) => ({
      series: [COLUMNS * place + 3, COLUMNS * place + 2],
      fill: () => faded(tokenOf(label, place), 0.16),
    }));
  }

  hooks() {
    return { drawClear: [(plot) => this.drawStarts(plot), (plot) => this.drawLevels(plot)] };
  }

  /** What the curve must beat: [name, value] of each level that the page knows. */
  get known() {
    const { dataset } = document.getElementById("run-summary");
    return this.levels.filter((name) => dataset[name]).map((name) => [LEVELS[name], Number(dataset[name])]);
  }

  note() {
    return this.known.map(([name, value]) => `${name} ${this.format(value)}`).join(", ");
  }

  /** Draw a grey line at each level inside the visible range. */
  drawLevels(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = colour("--curve-3");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    for (const [, value] of this.known) {
      const y = Math.round(plot.valToPos(value, "y", true));
      if (!(y >= bbox.top && y <= bbox.top + bbox.height)) continue;
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
    }
    ctx.restore();
  }

  /** Draw where the earlier jobs end and later attempts start; labels that would overlap become one. */
  drawStarts(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour("--warn");
    ctx.lineWidth = devicePixelRatio;
    ctx.textAlign = "center";
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.setLineDash([3 * devicePixelRatio, 4 * devicePixelRatio]);
    const end = ctx.canvas.width - 2 * devicePixelRatio;
    const joints = this.earlier ? this.source.joints : [];
    const marks = [...joints.map(([step, words]) => ({ step, words })), ...[...this.source.all.starts].map(([attempt, step]) => ({ step, attempt }))]
      .map((mark) => ({ ...mark, x: Math.round(plot.valToPos(this.source.axis.x(mark.step), "x", true)) }))
      .filter(({ x }) => x >= bbox.left && x <= bbox.left + bbox.width)
      .sort((one, other) => one.x - other.x);
    for (const { x } of marks) {
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    const place = (shared) => {
      const words = named(shared);
      const half = ctx.measureText(words).width / 2;
      const middle = Math.max(bbox.left + half, Math.min((shared[0].x + shared.at(-1).x) / 2, end - half)); // beside the labels of the axis
      return { shared, words, middle, start: middle - half, end: middle + half };
    };
    const labels = [];
    for (const mark of marks) {
      let label = place([mark]);
      while (labels.length && label.start < labels.at(-1).end + 6 * devicePixelRatio) label = place([...labels.pop().shared, ...label.shared]);
      labels.push(label);
    }
    for (const { words, middle } of labels) ctx.fillText(visible(words), middle, bbox.top - 4 * devicePixelRatio);
    this.figure.dataset.starts = labels.map(({ words }) => words).join("; ");
    ctx.restore();
  }

  update() {
    super.update();
    this.mark();
  }

  /** Expose the number of points and the last step, for tests. */
  mark() {
    const curves = this.group.map(([name]) => this.curve(name)).filter(Boolean);
    this.figure.dataset.points = String(Math.max(0, ...curves.map(({ length }) => length)));
    const earlier = this.group.map(([name]) => this.earlier?.byName.get(name)?.length ?? 0);
    this.figure.dataset.earlier = String(Math.max(0, ...earlier));
    const reference = this.group.map(([name]) => this.source.reference?.curves.byName.get(name)?.length ?? 0);
    this.figure.dataset.reference = String(Math.max(0, ...reference));
    this.figure.dataset.step = String(Math.max(-1, ...curves.map(({ steps }) => steps.at(-1) ?? -1)));
  }

  /** Show the values under the cursor, or the latest values. */
  read() {
    const [xs, ...columns] = this.plot?.data ?? [[]];
    const at = this.cursor;
    const parts = this.group.map(([name, label], place) => {
      const value = at === null ? this.source.all.byName.get(name)?.latest : this.under(columns, place, at);
      return { label, text: value === null ? "not finite" : this.format(value ?? NaN), token: tokenOf(label, place) };
    });
    this.readout.replaceChildren(...parts.map((part) => this.entry(part, parts.length > 1, at === null)));
    const where = at === null || !xs.length ? "" : AXES[this.view.x].format(xs[at]);
    if (where) this.readout.prepend(text("span", where, "quiet"));
    const summary = parts.map(({ label, text: value }) => `${label} ${value}`).join(", ");
    this.canvas.setAttribute("aria-label", visible(`${this.title}: ${summary}${where && ` at ${where}`}`));
  }

  /** The value of a line under the cursor: its own, or that of the earlier jobs. */
  under(columns, place, at) {
    const own = nearest(columns[COLUMNS * place], at);
    return own === undefined && this.earlier ? nearest(columns[COLUMNS * this.group.length + place], at) : own;
  }

  /** The step replaces the label while a cursor is shown, so that nothing moves. */
  entry({ label, text: value, token }, isMarked, isLabelled) {
    const entry = text("span", "", `value ${token.slice(2)}`);
    if (isMarked) entry.append(text("i", ""));
    if (isMarked && isLabelled) entry.append(text("span", label, "quiet"), " ");
    entry.append(text("b", value));
    return entry;
  }

  legend() {
    return this.group.map(([, label], place) => ({ label, token: tokenOf(label, place) }));
  }

  /** The drawn points as reported, without smoothing. */
  rows() {
    const head = ["metric", "attempt", "step", this.view.x === "step" ? null : this.view.x, "value", "min", "max"];
    const rows = this.group.flatMap(([name]) => {
      const { steps = [], values, lows, highs, attempts } = this.curve(name) ?? {};
      return steps.map((step, at) => [name, attempts[at], step, this.source.axis.x(step), values[at], lows[at], highs[at]]);
    });
    return [head, ...rows].map((row) => row.filter((_, column) => head[column] !== null));
  }
}

function tokenOf(label, place) {
  return `--curve-${label === "chance" ? 3 : place + 1}`;
}

/** The value at a place, or the last one before it, since metrics of a chart may be reported at different steps. */
function nearest(values, at) {
  for (let place = at; place >= 0; place--) if (values[place] !== undefined) return values[place];
  return undefined;
}
