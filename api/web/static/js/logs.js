// The live tail of the log, fed by the job's stream.
import { text, visible } from "./text.js";

const MAX_LINES = 2000;

export class Tail {
  constructor() {
    this.box = document.getElementById("log-lines");
    this.none = this.box.querySelector(".none");
    this.follow = document.getElementById("log-follow");
    this.filter = document.getElementById("log-stream");
    this.follow.addEventListener("click", () => this.setFollows(!this.follows));
    this.filter.addEventListener("change", () => this.choose());
    this.box.addEventListener("scroll", () => this.scrolled());
    this.toEnd();
  }

  get follows() {
    return this.follow.getAttribute("aria-pressed") === "true";
  }

  setFollows(follows) {
    this.follow.setAttribute("aria-pressed", String(follows));
    if (follows) this.toEnd();
  }

  toEnd() {
    if (this.follows) this.box.scrollTop = this.box.scrollHeight;
  }

  /** Scrolling up stops following; scrolling to the end resumes it. */
  scrolled() {
    const distance = this.box.scrollHeight - this.box.clientHeight - this.box.scrollTop;
    if (distance > 60 && this.follows) this.setFollows(false);
    else if (distance < 2 && !this.follows) this.setFollows(true);
  }

  choose() {
    this.box.dataset.only = this.filter.value;
    this.toEnd();
  }

  append(items) {
    this.none.hidden = true;
    this.none.before(...items.map(line));
    const lines = this.box.getElementsByClassName("line");
    while (lines.length > MAX_LINES) lines[0].remove();
    this.toEnd();
  }
}

/** Build a line as in templates/job.html. */
function line({ stream, attempt, line: content, at }) {
  const row = document.createElement("div");
  row.className = `line ${stream}`;
  row.dataset.stream = stream;
  const time = text("time", at.slice(11, 19));
  time.dateTime = at;
  time.title = visible(at);
  row.append(time, text("span", attempt, "attempt"), text("span", content, "text"));
  return row;
}
