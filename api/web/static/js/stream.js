// Server-sent events that survive restarts of the server.  A hidden page disconnects, since browsers allow six
// connections to a server.

const RETRY_MS = 2000;

export class Stream {
  /**
   * @param {string} path
   * @param {object} options `after`: continue after this event; `on`: handlers by event name; `onState`: called
   *   with "live", "lost" or "over"; `onOpen`: called on every connection, and when one was refused.
   */
  constructor(path, { after = "", on = {}, onState = () => {}, onOpen = () => {} }) {
    Object.assign(this, { path, after, on, onState, onOpen, source: null, isOver: false });
    document.addEventListener("visibilitychange", () => this.check());
    window.addEventListener("pagehide", () => this.disconnect());
    window.addEventListener("pageshow", () => this.check());
    this.check();
  }

  check() {
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

  /** The browser repeats a broken connection, with Last-Event-ID; this method repeats a refused one. */
  lost(source) {
    if (this.source !== source || this.isOver) return;
    this.onState("lost");
    if (source.readyState !== EventSource.CLOSED) return;
    this.disconnect();
    this.onOpen(); // checks whether this browser is still signed in
    setTimeout(() => this.check(), RETRY_MS);
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

/** Show the state of a stream in the header of the page. */
export function showState(state) {
  const shown = document.getElementById("connection");
  shown.dataset.state = state;
  shown.firstElementChild.textContent = { live: "live", lost: "reconnecting", over: "" }[state];
}
