// The list of jobs: filters are in the address; the stream announces changes, and the rows are fetched as rendered HTML.
import "./actions.js";
import { address, refresh, throttled } from "./page.js";
import { Stream, showState } from "./stream.js";

const form = document.getElementById("filters");
const clear = document.getElementById("clear");

function rows() {
  return new Map([...document.querySelectorAll("#list tbody tr")].map((row) => [row.id, row]));
}

async function update() {
  const before = rows();
  await refresh(address(`/live${location.search}`));
  if (before.size === 0 || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const colour = getComputedStyle(clear).getPropertyValue("--accent-soft");
  for (const [id, row] of rows()) {
    if (!before.has(id)) row.animate([{ backgroundColor: colour }, {}], { duration: 2500, easing: "ease-in" });
  }
}

const updateSoon = throttled(update, 800);

// ---- filters

function filtered() {
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value.trim()));
  return address(query.size ? `/?${query}` : "/");
}

async function apply() {
  if (filtered() !== location.pathname + location.search) history.pushState(null, "", filtered());
  shown = location.search;
  clear.hidden = !location.search;
  await update();
}

let shown = location.search;
let typing = 0;
form.addEventListener("submit", (event) => {
  event.preventDefault();
  apply();
});
form.addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(apply, event.target.type === "checkbox" || event.target.nodeName === "SELECT" ? 0 : 250);
});
/** Whether the user has changed a filter before this script was loaded. */
function isTouched() {
  return [...form.elements].some((each) => {
    if (each.type === "checkbox") return each.checked !== each.defaultChecked;
    if (each.nodeName === "SELECT") return each.value !== (each.querySelector("[selected]") ?? each.options[0]).value;
    return each.nodeName === "INPUT" && each.value !== each.defaultValue;
  });
}

if (isTouched()) apply();
window.addEventListener("popstate", () => {
  if (location.search !== shown) location.reload(); // a jump within the page keeps the list
});

// ---- live

// The stream announces changes of jobs, not of workers.
setInterval(() => document.visibilityState === "visible" && updateSoon(), 10_000);
new Stream("", { on: { changed: updateSoon }, onState: showState, onOpen: updateSoon });
