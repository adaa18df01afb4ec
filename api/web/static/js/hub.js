// The one stream that all windows of a browser share, since browsers allow six connections to a server.  It runs in a
// shared worker (stream-worker.js), or in the page where there are no shared workers.

const OF_JOBS = ["job", "event", "metrics", "logs", "progress", "end", "deleted"];
const RETRY_MS = 2000;
const JOIN_MS = 50; // windows that open at once cause one connection
const LEAVE_MS = 1000;

export class Hub {
  constructor() {
    Object.assign(this, { followers: new Set(), source: null, timer: 0 });
  }

  /** @param {object} follower `job`: an id, or empty for the lists; `after`: a cursor; `send`: gets each message. */
  add(follower) {
    this.followers.add(follower);
    this.connectIn(JOIN_MS);
  }

  remove(follower) {
    if (!this.followers.delete(follower)) return;
    if (this.followers.size) this.connectIn(LEAVE_MS);
    else this.connect();
  }

  connectIn(pause) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.connect(), pause);
  }

  /** Open a stream for the present followers; each continues after its last message. */
  connect() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
    if (!this.followers.size) return;
    const jobs = [...this.followers].filter(({ job }) => job);
    const address = new URL("../../v1/stream", import.meta.url);
    for (const { job, after } of jobs) address.searchParams.append("job", after ? `${job}@${after}` : job);
    const source = (this.source = new EventSource(address));
    let subject = null;
    source.addEventListener("open", () => this.tell({ state: "live" }));
    source.addEventListener("error", () => this.lost(source));
    source.addEventListener("changed", ({ data }) => this.tell({ name: "changed", data }));
    source.addEventListener("subject", ({ data }) => (subject = jobs[JSON.parse(data)]));
    for (const name of OF_JOBS) {
      source.addEventListener(name, ({ data, lastEventId }) => {
        subject.after = lastEventId;
        if (this.followers.has(subject)) subject.send({ name, data, after: lastEventId });
      });
    }
  }

  /** The browser would repeat the same address, which holds old cursors; so this method connects again. */
  lost(source) {
    if (this.source !== source) return;
    const isRefused = source.readyState === EventSource.CLOSED;
    source.close();
    this.source = null;
    this.tell({ state: isRefused ? "refused" : "lost" });
    this.connectIn(RETRY_MS);
  }

  tell(message) {
    for (const follower of this.followers) follower.send(message);
  }
}
