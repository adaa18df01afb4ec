// The charts of a run: which metrics stand together, and one uPlot each that follows its curves.
import { number, percent, short } from "./format.js";

const GROUPS = [
  { title: "Loss", lines: [["train/loss", "loss"]] },
  {
    title: "Loss terms",
    about: "The instance loss and the weak-label loss, before the weight beta",
    lines: [["train/loss_instance", "instance"], ["train/loss_weak", "weak"]],
    needs: "train/loss_weak",
  },
  { title: "kNN accuracy", about: "Of the test split, on frozen features", lines: [["eval/knn_top1", "kNN"]], isShare: true },
  {
    title: "Pair precision",
    about: "Share of the pairs joined by weak labels whose classes agree, beside what random pairs would reach",
    lines: [["weak/pair_precision", "precision"], ["weak/pair_precision_chance", "chance"]],
    isShare: true,
  },
  {
    title: "View agreement",
    about: "How far the weak labels of the two views agree",
    lines: [["weak/view_agreement", "agreement"]],
    isShare: true,
  },
  { title: "Components", about: "Weak labels in a batch", lines: [["weak/components", "components"]] },
  { title: "Learning rate", lines: [["train/lr", "rate"]] },
  { title: "Images per second", lines: [["train/images_per_second", "images/s"]] },
];
const KNOWN = new Set(GROUPS.flatMap((group) => group.lines.map(([name]) => name)));
const MAX_OTHERS = 60; // the table of latest values has them all
const HEIGHT = 190;
const TOGETHER = "charts"; // uPlot's key for cursors that move together

/** The groups that have data, then every other metric by itself. */
export function groupsOf(curves) {
  const known = GROUPS.filter(({ lines, needs }) =>
    needs ? curves.byName.has(needs) : lines.some(([name]) => curves.byName.has(name)),
  );
  const others = [...curves.byName.keys()].filter((name) => !KNOWN.has(name)).sort().slice(0, MAX_OTHERS);
  return [...known, ...others.map((name) => ({ title: name, lines: [[name, "value"]] }))];
}

/** A colour of the style sheet as canvases want it. */
export function colour(name) {
  const probe = document.getElementById("charts");
  const before = probe.style.color;
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.style.color = before;
  return found;
}

function faded(name, share) {
  return colour(name).replace(/^rgb\((.*)\)$/, `rgba($1, ${share})`);
}

export class Chart {
  constructor(group, curves, place) {
    Object.assign(this, { group, curves, format: group.isShare ? percent : number });
    this.figure = document.createElement("figure");
    this.figure.className = "chart panel";
    this.figure.dataset.metrics = group.lines.map(([name]) => name).join(" ");
    this.caption = this.figure.appendChild(document.createElement("figcaption"));
    const title = this.caption.appendChild(document.createElement("h3"));
    title.textContent = group.title;
    title.title = group.about ?? group.title;
    this.readout = this.caption.appendChild(document.createElement("p"));
    this.canvas = this.figure.appendChild(document.createElement("div"));
    this.canvas.className = "canvas";
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    place.append(this.figure);
    this.plot = new window.uPlot(this.options(), this.data(), this.canvas);
    this.canvas.addEventListener("keydown", (event) => this.walk(event));
    this.canvas.addEventListener("blur", () => this.plot.setCursor({ left: -10, top: -10 }));
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    this.update();
  }

  get lines() {
    return this.group.lines.filter(([name]) => this.curves.byName.has(name));
  }

  data() {
    const tables = this.group.lines.map(([name]) => {
      const { steps, values, lows, highs } = this.curves.curve(name);
      return [steps, values, lows, highs];
    });
    return window.uPlot.join(tables);
  }

  options() {
    const series = [{}];
    const bands = [];
    this.group.lines.forEach(([name, label], place) => {
      const isChance = label === "chance";
      const token = `--curve-${isChance ? 3 : place + 1}`;
      const hidden = { stroke: "transparent", width: 0, points: { show: false } };
      series.push(
        {
          label,
          stroke: () => colour(token),
          width: 1.75,
          dash: isChance ? [4, 4] : undefined,
          points: { show: () => this.curves.curve(name).length < 40 && !isChance, size: 4, fill: () => colour(token) },
        },
        hidden,
        { ...hidden },
      );
      bands.push({ series: [3 * place + 3, 3 * place + 2], fill: () => faded(token, 0.16) });
    });
    const axis = {
      stroke: () => colour("--text-3"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { show: false },
    };
    return {
      width: this.canvas.clientWidth || 360,
      height: HEIGHT,
      series,
      bands,
      legend: { show: false },
      padding: [18, 12, 0, 0],
      scales: { x: { time: false }, ...(this.group.isShare && { y: { range: shareRange } }) },
      axes: [
        { ...axis, size: 26, gap: 6, values: (plot, splits) => splits.map(short), space: 60 },
        { ...axis, size: 46, gap: 6, values: (plot, splits) => splits.map((v) => tickOf(v, this.group.isShare)), space: 34 },
      ],
      cursor: { y: false, sync: { key: TOGETHER, scales: ["x", null] }, points: { size: 7 }, drag: { x: false } },
      hooks: { setCursor: [() => this.read()], drawClear: [(plot) => this.drawStarts(plot)] },
    };
  }


  /** Where later attempts began. */
  drawStarts(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = colour("--warn");
    ctx.fillStyle = colour("--warn");
    ctx.lineWidth = devicePixelRatio;
    ctx.textAlign = "center";
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.setLineDash([3 * devicePixelRatio, 4 * devicePixelRatio]);
    for (const [attempt, step] of this.curves.starts) {
      const x = Math.round(plot.valToPos(step, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      ctx.fillText(`attempt ${attempt}`, x, bbox.top - 4 * devicePixelRatio);
    }
    ctx.restore();
  }

  update() {
    this.plot.setData(this.data());
    this.figure.dataset.points = String(Math.max(...this.lines.map(([name]) => this.curves.curve(name).length)));
    this.figure.dataset.step = String(this.plot.data[0].at(-1) ?? "");
    this.read();
  }

  redraw() {
    this.plot.redraw(false);
    this.read();
  }

  resize() {
    const width = this.canvas.clientWidth;
    if (width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  /** The values under the cursor, else the latest ones. */
  read() {
    if (!this.plot) return;
    const [steps, ...columns] = this.plot.data;
    const at = this.plot.cursor.idx ?? null;
    const parts = this.group.lines.map(([name, label], place) => {
      const value = at === null ? this.curves.curve(name).latest : nearest(columns[3 * place], at);
      return { label, text: value === null ? "not finite" : this.format(value ?? NaN), token: label === "chance" ? 3 : place + 1 };
    });
    this.readout.replaceChildren(...parts.map((part) => this.entry(part, parts.length > 1, at === null)));
    if (at !== null && steps.length) this.readout.prepend(text("span", `step ${number(steps[at])}`, "quiet"));
    const spoken = parts.map(({ label, text: value }) => `${label} ${value}`).join(", ");
    this.canvas.setAttribute("aria-label", `${this.group.title}: ${spoken}${at === null ? "" : ` at step ${steps[at]}`}`);
  }

  /** The label gives way to the step while a cursor is shown, so that nothing moves. */
  entry({ label, text: value, token }, isMarked, isLabelled) {
    const entry = text("span", "", `value curve-${token}`);
    if (isMarked) entry.append(text("i", ""));
    if (isMarked && isLabelled) entry.append(text("span", label, "quiet"), " ");
    entry.append(text("b", value));
    return entry;
  }

  /** Arrow keys move the cursor from point to point. */
  walk(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    const steps = this.plot.data[0];
    if (move === undefined || !steps.length) return;
    event.preventDefault();
    const last = steps.length - 1;
    const at = Math.min(last, Math.max(0, (this.plot.cursor.idx ?? last + (move < 0 ? 1 : 0)) + move));
    this.plot.setCursor({ left: this.plot.valToPos(steps[at], "x"), top: 10 });
  }
}

/** A value on the axis. */
export function tickOf(value, isShare) {
  return isShare ? `${Number((value * 100).toPrecision(3))}%` : short(value);
}

/** Shares of one: some room around them, but none below 0 or above 1. */
export function shareRange(plot, low, high) {
  if (low === null) return [0, 1];
  const room = Math.max(0.1 * (high - low), 0.02);
  return [Math.max(0, low - room), Math.min(1, high + room)];
}

function text(tag, content, className = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  made.className = className;
  return made;
}

/** The value at a place, or the last one before it: metrics of one chart are not all reported at the same steps. */
function nearest(values, at) {
  for (let place = at; place >= 0; place--) if (values[place] !== undefined) return values[place];
  return undefined;
}
