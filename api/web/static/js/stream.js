// Server-sent events that survive restarts of the server.  A hidden page disconnects; visible ones share a connection.
import { Hub } from "./hub.js";
import { visible } from "./text.js";

/** Return a function that follows a subject, or nothing if it is null; `receive` gets the messages of the hub. */
function connection(receive) {
  let subject = null;
  let send = null;
  const useOwnHub = () => {
    const hub = new Hub();
    let follower = null;
    send = () => {
      if (follower) hub.remove(follower);
      follower = subject && { ...subject, send: receive };
      if (follower) hub.add(follower);
    };
    send();
  };
  try {
    const worker = new SharedWorker(new URL("./stream-worker.js", import.meta.url), { type: "module" });
    worker.onerror = useOwnHub;
    worker.port.onmessage = ({ data }) => receive(data);
    send = () => worker.port.postMessage(subject);
  } catch {
    useOwnHub(); // some browsers have no shared workers
  }
  return (followed) => {
    subject = followed;
    send();
  };
}

export class Stream {
  /**
   * @param {string} job the id of a job; empty for the lists
   * @param {object} options `after`: continue after this event; `on`: handlers by event name; `onState`: called
   *   with "live", "lost" or "over"; `onOpen`: called on every connection, and when one was refused.
   */
  constructor(job, { after = "", on = {}, onState = () => {}, onOpen = () => {} }) {
    Object.assign(this, { job, after, on, onState, onOpen, isConnected: false, isOver: false });
    this.follow = connection((message) => this.receive(message));
    document.addEventListener("visibilitychange", () => this.check());
    window.addEventListener("pagehide", () => this.disconnect());
    window.addEventListener("pageshow", () => this.check());
    this.check();
  }

  check() {
    if (this.isOver || document.visibilityState === "hidden") return this.disconnect();
    if (!this.isConnected) this.follow({ job: this.job, after: this.after });
    this.isConnected = true;
  }

  receive({ state, name, data, after }) {
    if (!this.isConnected) return;
    if (state) this.onState(state === "live" ? "live" : "lost");
    if (state === "live" || state === "refused") this.onOpen(); // shows whether this browser is still signed in
    if (after) this.after = after;
    if (name) this.on[name]?.(JSON.parse(data));
  }

  disconnect() {
    if (this.isConnected) this.follow(null);
    this.isConnected = false;
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
  shown.firstElementChild.textContent = visible({ live: "live", lost: "reconnecting", over: "" }[state]);
}
