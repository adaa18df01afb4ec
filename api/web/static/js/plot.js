// The base of charts: a figure with readout, zoom by mouse, touch and keys, and downloads.  Subclasses (charts.js,
// compare.js) implement `tables()`, `series()`, `bands()`, `read()` and `legend()`.
import { AXES } from "./axes.js";
import { savePicture, saveTable } from "./downloads.js";
import { follow } from "./fingers.js";
import { short } from "./format.js";
import { text, visible } from "./text.js";

const NARROW = matchMedia("(max-width: 40rem)");
const MIN_DRAG = 5; // pixels; less is a click
const SPARSE = 40; // points of a series, below which each point is drawn and the line is not smoothed

/** Resolve a colour of the style sheet for a canvas. */
export function colour(name, element = document.getElementById("charts")) {
  const before = element.style.color;
  element.style.color = `var(${name})`;
  const resolved = getComputedStyle(element).color;
  element.style.color = before;
  return resolved;
}

export function faded(name, share) {
  return colour(name).replace(/^rgb\((.*)\)$/, `rgba($1, ${share})`);
}

/** Exponential moving average without the bias of its start; gaps stay gaps. */
export function smoothed(values, weight) {
  if (!weight) return values;
  let [sum, norm] = [0, 0];
  return values.map((value) => {
    if (value === null || value === undefined) return value;
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

/** Whether a series has few points; `most` is the number of points that it could have. */
export function isSparse(length, most = Infinity) {
  return length < Math.min(SPARSE, most / 2);
}

/** The range of shares of one, with a margin, within 0 and 1; an agreement below chance is below 0. */
function shareRange(plot, low, high) {
  if (low === null) return [0, 1];
  const room = Math.max(0.1 * (high - low), 0.02);
  return [low < 0 ? low - room : Math.max(0, low - room), Math.min(1, high + room)];
}

function logRange(plot, low, high) {
  if (!(low > 0)) return [1, 10];
  return [low / 1.15, high * 1.15];
}

// A job may have 60 charts, and a screen shows 6 of them. Each chart is drawn when it is scrolled near the screen.
const sight = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      sight.unobserve(target);
      target.dataset.seen = "yes";
      target.dispatchEvent(new Event("seen"));
    }
  },
  { rootMargin: "400px" },
);

// A printed page has no screen: it shows all.
addEventListener("beforeprint", () => {
  for (const figure of document.querySelectorAll("figure.chart:not([data-seen])")) {
    sight.unobserve(figure);
    figure.dataset.seen = "yes";
    figure.dispatchEvent(new Event("seen"));
  }
});

export class PlotFigure {
  /** @param {object} kind `title`, `about`, `isExplained`: whether `about` is shown, `isShare`, `height`, `sync`: the key of charts that share a cursor. */
  constructor(kind, view, place) {
    Object.assign(this, kind, { view });
    if (NARROW.matches) this.height = Math.round(0.6 * this.height); // two charts side by side
    this.figure = text("figure", "", "chart panel");
    this.caption = this.figure.appendChild(text("figcaption", "", "split"));
    const title = this.caption.appendChild(text("h3", this.title, "cut"));
    title.title = visible(this.about ?? this.title);
    this.readout = this.caption.appendChild(document.createElement("p"));
    if (this.isExplained && this.about) this.figure.append(text("p", `${this.about}.`, "about small quiet"));
    this.canvas = this.figure.appendChild(text("div", "", "canvas"));
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.figure.append(this.foot());
    sight.observe(this.figure);
    this.figure.addEventListener("seen", () => this.draw());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    follow(this.canvas, { moved: (fingers) => this.plot && this.touched(fingers), left: () => this.held && this.release() });
    this.canvas.addEventListener("blur", () => this.plot?.setCursor({ left: -10, top: -10 }));
    place.append(this.figure);
  }

  foot() {
    const foot = text("p", "", "foot");
    this.below = foot.appendChild(text("span", "", "quiet"));
    for (const [label, act] of [["CSV", () => this.saveTable()], ["PNG", () => this.savePicture()]]) {
      const button = foot.appendChild(text("button", label, "button quiet"));
      button.type = "button";
      button.setAttribute("aria-label", visible(`${this.title} as ${label}`));
      button.addEventListener("click", act);
    }
    return foot;
  }

  /** Create the plot once it is near the screen, and again when axis or scale change. */
  draw() {
    this.read();
    if (!this.figure.dataset.seen) return;
    this.plot?.destroy();
    this.plot = new window.uPlot(this.options(), this.data(), this.canvas);
    this.watch ??= new ResizeObserver(() => this.resize());
    this.watch.observe(this.canvas);
    this.label();
    this.read();
  }

  /** Name the axis below the chart. */
  label() {
    const parts = [AXES[this.view.x].label, this.hasHidden ? "positive values only" : "", this.note()];
    this.below.textContent = visible(parts.filter(Boolean).join("; "));
  }

  /** Show new points, or another range. */
  update() {
    this.plot?.setData(this.data());
    if (this.plot) this.label();
    this.read();
  }

  redraw() {
    this.plot?.redraw(false);
    this.read();
  }

  /** The index of the point under the cursor, or null. */
  get cursor() {
    return this.plot?.cursor.idx ?? null;
  }

  resize() {
    const width = this.canvas.clientWidth;
    if (width && width !== this.plot.width) this.plot.setSize({ width, height: this.height });
  }

  data() {
    this.hasHidden = false;
    return window.uPlot.join(this.tables().map(([xs, ...columns]) => [xs, ...columns.map((column) => this.shown(column))]));
  }

  /** Replace values that a logarithmic scale cannot show. */
  shown(column) {
    if (!this.isLog) return column;
    return column.map((value) => {
      if (value === null || value === undefined || value > 0) return value;
      this.hasHidden = true;
      return null;
    });
  }

  get isLog() {
    return this.view.log;
  }

  options() {
    const axis = {
      stroke: () => colour("--text-3"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { show: false },
    };
    const { tick } = AXES[this.view.x];
    const y = this.isLog ? { distr: 3, range: logRange } : this.isShare ? { range: shareRange } : {};
    return {
      width: this.canvas.clientWidth || 360,
      height: this.height,
      series: [{}, ...this.series()],
      bands: this.bands(),
      legend: { show: false },
      padding: NARROW.matches ? [10, 6, 0, 0] : [18, 12, 0, 0],
      scales: { x: { time: false, range: (plot, low, high) => this.range(low, high) }, y },
      axes: [
        { ...axis, size: 26, gap: 6, values: (plot, splits) => splits.map(tick), space: 60 },
        { ...axis, size: NARROW.matches ? 38 : 46, gap: NARROW.matches ? 4 : 6, values: (plot, splits) => splits.map((v) => (v === null ? "" : tickOf(v, this.isShare))), space: 34 },
      ],
      cursor: {
        y: false,
        sync: { key: this.sync, scales: ["x", null], filters: { pub: (type) => !/mouse(down|up)|dblclick/.test(type) } },
        points: { size: 7 },
        drag: { x: true, y: false, setScale: false },
        bind: { dblclick: () => () => this.view.reset() },
      },
      hooks: { setCursor: [() => this.read()], setSelect: [(plot) => this.select(plot)], ...this.hooks() },
    };
  }

  hooks() {
    return {};
  }

  /** More words below the chart. */
  note() {
    return "";
  }

  range(low, high) {
    if (!this.view.isZoomed && !this.held && high > low) this.whole = [low, high];
    const [from, to] = this.held ?? [this.view.from ?? low ?? 0, this.view.to ?? high ?? 1];
    return to > from ? [from, to] : [from - 0.5, from + 0.5];
  }

  select(plot) {
    const { left, width } = plot.select;
    if (width <= 0) return;
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    if (width >= MIN_DRAG) this.view.zoom(Math.max(0, plot.posToVal(left, "x")), plot.posToVal(left + width, "x"));
  }

  /** Two fingers zoom; one moves the visible range, or the cursor if everything is visible. */
  touched({ count, x, dx, factor }) {
    const { over, scales } = this.plot;
    const at = x - over.offsetLeft;
    if (count === 1 && !this.held && !this.view.isZoomed) return this.plot.setCursor({ left: at, top: 10 });
    const { min, max } = scales.x;
    if (!(max > min)) return;
    const unit = (max - min) / over.clientWidth;
    const middle = min + (at - dx) * unit; // the value under the fingers keeps its position
    const from = middle - (at * unit) / factor;
    const span = (max - min) / factor;
    this.held = this.within(from, span);
    this.plot.setScale("x", { min: this.held[0], max: this.held[1] });
  }

  /** Return a range of this length inside the range of the data. */
  within(from, span) {
    const [low, high] = this.whole ?? [0, Infinity];
    if (span >= high - low) return [low, high];
    const start = Math.min(Math.max(low, from), high - span);
    return [start, start + span];
  }

  /** Make the range of the touch gesture the visible range, once all fingers are lifted. */
  release() {
    const [from, to] = this.held;
    this.held = null;
    if (this.whole && from <= this.whole[0] && to >= this.whole[1]) this.view.reset();
    else this.view.zoom(from, to);
    this.draw(); // also if the range is unchanged
  }

  key(event) {
    if (!this.plot) return;
    const zoom = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (zoom) this.zoomBy(zoom);
    else if (event.key === "Escape" || event.key === "0") this.view.reset();
    else if (!this.walk(event.key)) return;
    event.preventDefault();
  }

  zoomBy(factor) {
    const { min, max } = this.plot.scales.x;
    const [all, at] = [this.plot.data[0], this.plot.cursor.idx];
    if (!all.length) return;
    const middle = at === null || at === undefined ? (min + max) / 2 : all[at];
    this.view.zoom(Math.max(0, middle - (middle - min) * factor), middle + (max - middle) * factor);
  }

  /** Arrow keys move the cursor from point to point. */
  walk(key) {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[key];
    const xs = this.plot.data[0];
    if (move === undefined || !xs.length) return false;
    const last = xs.length - 1;
    const at = Math.min(last, Math.max(0, (this.plot.cursor.idx ?? last + (move < 0 ? 1 : 0)) + move));
    this.plot.setCursor({ left: this.plot.valToPos(xs[at], "x"), top: 10 });
    return true;
  }

  saveTable() {
    saveTable(this.title, this.rows());
  }

  savePicture() {
    savePicture(this.title, this.legend(), this.plot, colour);
  }
}

function tickOf(value, isShare) {
  return isShare ? `${Number((value * 100).toPrecision(3))}%` : short(value);
}
