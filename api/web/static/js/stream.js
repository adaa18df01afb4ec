// Server-sent events that survive restarts of the server, and rest while nobody looks: browsers allow six connections
// to a server, so a dozen forgotten tabs must not hold them all.

const RETRY_MS = 2000;

export class Stream {
  /**
   * @param {string} path
   * @param {object} options `after`: go on after this event; `on`: handlers by event name; `onState`: told
   *   "live", "lost" or "over"; `onOpen`: called on every connection, and when one was refused.
   */
  constructor(path, { after = "", on = {}, onState = () => {}, onOpen = () => {} }) {
    Object.assign(this, { path, after, on, onState, onOpen, source: null, isOver: false });
    document.addEventListener("visibilitychange", () => this.look());
    window.addEventListener("pagehide", () => this.disconnect());
    window.addEventListener("pageshow", () => this.look());
    this.look();
  }

  look() {
    if (this.isOver || document.visibilityState === "hidden") this.disconnect();
    else if (!this.source) this.connect();
  }

  connect() {
    const address = new URL(this.path, location.href);
    if (this.after) address.searchParams.set("last_event_id", this.after);
    const source = (this.source = new EventSource(address));
    source.addEventListener("open", () => {
      this.onState("live");
      this.onOpen();
    });
    source.addEventListener("error", () => this.lost(source));
    for (const [name, handle] of Object.entries(this.on)) {
      source.addEventListener(name, (event) => {
        this.after = event.lastEventId || this.after;
        handle(JSON.parse(event.data));
      });
    }
  }

  /** A broken connection is made again by the browser, with Last-Event-ID; one that was refused, by us. */
  lost(source) {
    if (this.source !== source || this.isOver) return;
    this.onState("lost");
    if (source.readyState !== EventSource.CLOSED) return;
    this.disconnect();
    this.onOpen(); // finds out whether this browser is still signed in
    setTimeout(() => this.look(), RETRY_MS);
  }

  disconnect() {
    this.source?.close();
    this.source = null;
  }

  end() {
    this.isOver = true;
    this.disconnect();
    this.onState("over");
  }
}

/** Shows a stream's state in the page's head. */
export function showState(state) {
  const shown = document.getElementById("connection");
  shown.dataset.state = state;
  shown.firstElementChild.textContent = { live: "live", lost: "reconnecting", over: "" }[state];
}
