// The chart options: x axis, smoothing, scale and visible range.  They are in the address, so that a link shows the same
// view and the Back button works.
import { AXES } from "./axes.js";

const NAMES = ["x", "smooth", "log", "from", "to"];

function amount(text) {
  const value = Number(text);
  return text === null || text.trim() === "" || !Number.isFinite(value) || value < 0 ? null : value;
}

/** A number with six digits, which are finer than any screen. */
function rounded(value) {
  return value === null ? null : Number(value.toPrecision(6));
}

export class View {
  /** @param {(before: object) => void} onChange called after each change, with the previous options. */
  constructor(form, onChange) {
    Object.assign(this, { form, onChange });
    this.take(new URLSearchParams(location.search));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => this.entered(event.target));
    form.addEventListener("change", (event) => this.entered(event.target, true));
    form.elements.reset.addEventListener("click", () => this.reset());
    window.addEventListener("popstate", () => this.change(() => this.take(new URLSearchParams(location.search))));
    this.show();
  }

  get isZoomed() {
    return this.from !== null || this.to !== null;
  }

  take(query) {
    this.x = Object.hasOwn(AXES, query.get("x") ?? "") ? query.get("x") : "step";
    this.smooth = Math.min(0.99, amount(query.get("smooth")) ?? 0);
    this.log = query.get("log") === "1";
    this.from = amount(query.get("from"));
    this.to = amount(query.get("to"));
    if (this.from !== null && this.to !== null && this.to <= this.from) this.from = this.to = null;
  }

  entered({ name, value, checked }, isFinal = false) {
    if (name === "smooth") this.set({ smooth: Number(value) }, false);
    if (name === "log") this.set({ log: checked }, false);
    if (name === "x" && value !== this.x) this.set({ x: value, from: null, to: null });
    if (isFinal && (name === "from" || name === "to")) this.zoom(...["from", "to"].map((end) => amount(this.form.elements[end].value)));
  }

  zoom(from, to) {
    if (from !== null && to !== null && to <= from) return this.show();
    this.set({ from: rounded(from), to: rounded(to) });
  }

  reset() {
    if (this.isZoomed) this.set({ from: null, to: null });
  }

  set(values, isKept = true) {
    this.change(() => Object.assign(this, values));
    history[isKept ? "pushState" : "replaceState"](null, "", this.address());
  }

  change(act) {
    const before = { x: this.x, smooth: this.smooth, log: this.log, from: this.from, to: this.to };
    act();
    if (NAMES.every((name) => this[name] === before[name])) return;
    this.show();
    this.onChange(before);
  }

  /** The address of this page with the options; defaults are omitted. */
  address() {
    const query = new URLSearchParams(location.search);
    const values = { x: this.x === "step" ? null : this.x, smooth: this.smooth || null, log: this.log ? 1 : null, from: this.from, to: this.to };
    for (const [name, value] of Object.entries(values)) {
      if (value === null) query.delete(name);
      else query.set(name, String(value));
    }
    return `${location.pathname}${query.size ? `?${query}` : ""}${location.hash}`;
  }

  show() {
    const { x, smooth, log, from, to, reset, amount: smoothing } = this.form.elements;
    x.value = this.x;
    smooth.value = String(this.smooth);
    smoothing.value = this.smooth ? this.smooth.toFixed(2) : "none";
    log.checked = this.log;
    from.value = this.from ?? "";
    to.value = this.to ?? "";
    reset.disabled = !this.isZoomed;
  }
}
