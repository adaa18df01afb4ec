// The page of weak labels: choices replace parts of the page without leaving it; new epochs come by the stream.
import { refresh, throttled } from "./page.js";
import { Stream, showState } from "./stream.js";

const OVER = new Set(["succeeded", "failed", "cancelled"]);
const page = document.getElementById("weak-labels");

const show = throttled(() => refresh(location.href), 50);
const update = throttled(show, 1500);

// ---- choices

page.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-choice]");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(link.href);
});

async function go(address) {
  history.pushState(null, "", address);
  await show();
  if (location.hash) document.querySelector(location.hash)?.scrollIntoView({ block: "nearest" });
}

addEventListener("popstate", show);

// The arrow keys step through the epochs while the focus is on them.
page.addEventListener("keydown", (event) => {
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  if (!rel || !event.target.closest("#epochs")) return;
  const link = page.querySelector(`#epochs a[rel=${rel}]`);
  if (!link) return;
  event.preventDefault();
  go(link.href);
});

// ---- stream

const stream = new Stream(page.dataset.job, {
  after: page.dataset.cursor,
  onState: showState,
  onOpen: update,
  on: {
    job: ({ status }) => {
      page.dataset.status = status;
      update();
    },
    event: update,
    // Weak labels are stored before the metrics of the same report.
    metrics: ({ points }) => {
      if (points.some(({ name }) => name === "weak/ami")) update();
    },
    end: () => {
      stream.end();
      update();
    },
  },
});

if (OVER.has(page.dataset.status)) stream.end();
