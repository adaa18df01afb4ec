// The list of jobs: filters are in the address; the stream announces changes, and the rows are fetched as rendered HTML.
import "./actions.js";
import { address, refresh, throttled } from "./page.js";
import { Stream, showState } from "./stream.js";
import { visible } from "./text.js";

const form = document.getElementById("filters");
const clear = document.getElementById("clear");

function rows() {
  return new Map([...document.querySelectorAll("#list tbody tr")].map((row) => [row.id, row]));
}

async function update() {
  const before = rows();
  await refresh(address(`/live${location.search}`));
  count();
  if (before.size === 0 || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const colour = getComputedStyle(clear).getPropertyValue("--accent-soft");
  for (const [id, row] of rows()) {
    if (!before.has(id) && row.classList.contains("level-0")) row.animate([{ backgroundColor: colour }, {}], { duration: 2500, easing: "ease-in" });
  }
}

const updateSoon = throttled(update, 800);

// ---- filters

function filtered() {
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value.trim()));
  const shownNow = new URLSearchParams(location.search); // the order stays; entries that are open belong to no filter
  for (const name of ["sort", "order"]) {
    query.delete(name);
    if (shownNow.has(name)) query.set(name, shownNow.get(name));
  }
  return address(query.size ? `/?${query}` : "/");
}

async function apply() {
  await show(filtered());
}

/** Show the list of an address of this page. */
async function show(wanted) {
  if (wanted !== location.pathname + location.search) history.pushState(null, "", wanted);
  shown = location.search;
  clear.hidden = !["status", "kind", "tag", "q", "archived", "starred", "group"].some((name) => new URLSearchParams(shown).has(name));
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

document.getElementById("save-view")?.addEventListener("submit", ({ target }) => {
  const query = new URLSearchParams(location.search);
  for (const name of ["open", "cursor"]) query.delete(name);
  target.elements.query.value = query;
});

if (isTouched()) apply();
window.addEventListener("popstate", () => {
  if (location.search !== shown) location.reload(); // a jump within the page keeps the list
});

// ---- order, entries that open, selection

document.getElementById("list").addEventListener("click", (event) => {
  const link = event.target.closest("a.fold, a.order");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  show(link.pathname + link.search);
});

function picks() {
  return [...document.querySelectorAll("input.pick")];
}

/** Show how many are selected; nothing to do where nothing can be selected. */
function count() {
  const [every, all] = [document.getElementById("pick-all"), document.getElementById("pick-matching")];
  if (!all) return;
  const chosen = picks().filter(({ checked }) => checked).length;
  if (every) every.checked = chosen > 0 && chosen === picks().length;
  if (every) every.indeterminate = chosen > 0 && !every.checked;
  if (!chosen) all.checked = false;
  all.value = `?${document.getElementById("list").dataset.query}`;
  document.getElementById("selected").textContent = visible(all.checked ? "All that match" : `${chosen} selected`);
}

document.addEventListener("change", ({ target }) => {
  if (target.id === "pick-all") for (const pick of picks()) pick.checked = target.checked;
  if (target.matches(".pick, .pick-all, #pick-matching")) count();
});

// ---- live

// The stream announces changes of jobs, not of workers.
setInterval(() => document.visibilityState === "visible" && updateSoon(), 10_000);
new Stream("", { on: { changed: updateSoon }, onState: showState, onOpen: updateSoon });
