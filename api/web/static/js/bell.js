// Notifications of the browser about the job of a page.  A hidden page has no stream, so the bell asks for its events.
import { address, notify } from "./page.js";
import { visible } from "./text.js";

const PAUSE_MS = 10_000; // browsers let a hidden page ask about once a minute
const ENDS = new Set(["succeeded", "failed", "cancelled"]);
const NEWS = new Set([...ENDS, "paused", "requeued", "warning"]);

export class Bell {
  /**
   * @param {HTMLButtonElement} button turns the notifications on and off
   * @param {object} job `id` and `name` of the job, and `event`: the number of its last known event
   */
  constructor(button, job) {
    Object.assign(this, { button, job, timer: 0, isOn: false });
    button.addEventListener("click", () => (this.isOn ? this.stop() : this.start()));
  }

  async start() {
    if (!("Notification" in window) || (await Notification.requestPermission()) !== "granted") {
      return notify("This browser does not allow notifications of this page.");
    }
    this.turn(true);
    await this.news(); // what has happened before is no news
    notify("This browser tells when the job ends, pauses or has a warning, while this page is open.");
    this.askLater();
  }

  stop() {
    clearTimeout(this.timer);
    this.turn(false);
  }

  turn(isOn) {
    this.isOn = isOn;
    this.button.setAttribute("aria-pressed", String(isOn));
  }

  askLater() {
    this.timer = setTimeout(() => this.ask(), PAUSE_MS);
  }

  async ask() {
    for (const event of await this.news()) {
      if (!NEWS.has(event.type)) continue;
      const body = visible(event.data.message ?? event.data.reason ?? "");
      const shown = new Notification(visible(`${this.job.name}: ${event.type}`), { body, tag: `${this.job.id}-${event.seq}` });
      shown.onclick = () => window.focus();
      if (ENDS.has(event.type)) return this.stop();
    }
    if (this.isOn) this.askLater();
  }

  /** Return the events since the last call; none while the server does not respond. */
  async news() {
    try {
      const response = await fetch(address(`/v1/jobs/${this.job.id}/events?after=${this.job.event}`));
      if (!response.ok) return [];
      const { items } = await response.json();
      this.job.event = items.at(-1)?.seq ?? this.job.event;
      return items;
    } catch {
      return [];
    }
  }
}
