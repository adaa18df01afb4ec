// The curves of a job as data, without drawing.

/** One metric, ordered by step.  A new point replaces all points at or after its step: a resumed attempt continues from
 *  its checkpoint, and a point that is sent twice is stored once. */
export class Curve {
  constructor(name) {
    Object.assign(this, { name, steps: [], values: [], lows: [], highs: [], attempts: [] });
  }

  get length() {
    return this.steps.length;
  }

  get latest() {
    return this.values.at(-1);
  }

  add(attempt, step, value, low = value, high = value) {
    let cut = null;
    while (this.length && this.steps.at(-1) >= step) cut = this.pop();
    const before = this.steps.at(-1) ?? -1;
    if (cut && cut.attempt === attempt && cut.low !== cut.high && before < step - 1) {
      // The removed point covered several steps; it now ends just before the new one.
      this.push(cut.attempt, step - 1, cut.value, cut.low, cut.high);
    }
    this.push(attempt, step, value, low, high);
  }

  /** Drop the points after `step`, where the next attempt starts. */
  cutAfter(step) {
    while (this.length && this.steps.at(-1) > step) this.pop();
  }

  push(attempt, step, value, low, high) {
    this.steps.push(step);
    this.values.push(value);
    this.lows.push(low);
    this.highs.push(high);
    this.attempts.push(attempt);
  }

  pop() {
    this.steps.pop();
    const [value, low, high, attempt] = [this.values.pop(), this.lows.pop(), this.highs.pop(), this.attempts.pop()];
    return { value, low, high, attempt };
  }
}

/** All curves of a job, and the steps at which later attempts started. */
export class Curves {
  constructor() {
    this.byName = new Map();
    this.starts = new Map(); // attempt -> first step, of all attempts but the first
    this.numAdded = 0;
  }

  load(series, attempts) {
    this.byName.clear();
    this.starts.clear();
    this.numAdded = 0;
    for (const { number, start_step } of attempts) this.start(number, start_step);
    for (const { name, points } of series) {
      const curve = this.curve(name);
      for (const point of points) curve.add(point.attempt, point.step, point.value, point.min, point.max);
    }
  }

  curve(name) {
    if (!this.byName.has(name)) this.byName.set(name, new Curve(name));
    return this.byName.get(name);
  }

  add(points) {
    for (const { name, attempt, step, value } of points) this.curve(name).add(attempt, step, value);
    this.numAdded += points.length / Math.max(1, this.byName.size);
  }

  /** Store the first step of an attempt; null while it is unknown. */
  start(attempt, step) {
    if (attempt <= 1 || step === null || step === undefined || this.starts.get(attempt) === step) return;
    this.starts.set(attempt, step);
    for (const curve of this.byName.values()) curve.cutAfter(step);
  }
}
