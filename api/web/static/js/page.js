// Used by every page: theme switch, ages that update, copy buttons, messages, and refreshing in place.
import { morph } from "./morph.js";
import { visible } from "./text.js";

/** The address of a path of the service; a proxy may show the service below a root path. */
export function address(path) {
  const { pathname, search, hash } = new URL(`../..${path}`, import.meta.url);
  return pathname + search + hash;
}

// ---- theme

const dark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
const themeSwitch = document.getElementById("theme");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
}

function themeChanged() {
  themeSwitch.setAttribute("aria-pressed", String(isDark()));
  document.dispatchEvent(new Event("themechange"));
}

themeSwitch.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {
    // The theme is switched, but not stored.
  }
  themeChanged();
});
dark.addEventListener("change", themeChanged);
themeChanged();

// ---- ages; the same steps as api/web/format.py

function age(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  if (seconds < 5) return "now";
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  }
  return `${seconds} s`;
}

// Times are of the server's clock, which may differ from the browser's.
const skew = Number(root.dataset.now || Date.now()) - Date.now();

/** The server's time in milliseconds. */
export function now() {
  return Date.now() + skew;
}

function tick() {
  for (const time of document.querySelectorAll("time.age, time.ago")) {
    const shown = age(now() - Date.parse(time.dateTime));
    time.textContent = visible(time.className === "age" || shown === "now" ? shown : `${shown} ago`);
  }
}

setInterval(tick, 5000);

// ---- a panel that opens below the window's edge comes into view

document.addEventListener("toggle", ({ target }) => {
  if (target.matches?.("details.confirm[open]")) target.querySelector(":scope > .panel")?.scrollIntoView({ block: "nearest" });
}, true);

// ---- navigation wider than the screen: scroll to the current link, and fade an end with more links

function showEnds(links) {
  const [before, all] = [links.scrollLeft, links.scrollWidth - links.clientWidth];
  links.classList.toggle("more-left", before > 1);
  links.classList.toggle("more-right", before < all - 1);
}

for (const links of document.querySelectorAll(".top nav, nav.sections")) {
  const here = links.querySelector("[aria-current]");
  if (here) links.scrollLeft = here.offsetLeft - (links.clientWidth - here.offsetWidth) / 2;
  links.addEventListener("scroll", () => showEnds(links), { passive: true });
  new ResizeObserver(() => showEnds(links)).observe(links);
}

// ---- sections, buttons and filters that fold: on a phone they begin folded, and a link to a section opens it

function reveal(hash) {
  const target = hash ? document.getElementById(hash.slice(1)) : null;
  const part = target?.querySelector("details.folds") ?? target?.closest("details.folds");
  if (part) part.open = true;
}

if (matchMedia("(max-width: 40rem)").matches) {
  for (const part of document.querySelectorAll("details:is(.folds, .by-button)")) part.open = false;
  reveal(location.hash);
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}
document.addEventListener("click", ({ target }) => reveal(target.closest('a[href^="#"]')?.hash));

// ---- forms that filter a page: a choice applies at once, and the address has the fields that are filled

document.addEventListener("change", ({ target }) => {
  if (target.nodeName === "SELECT" && target.form?.hasAttribute("data-applies")) target.form.requestSubmit();
});
document.addEventListener("formdata", ({ target, formData }) => {
  if (!target.hasAttribute("data-applies")) return;
  for (const [name, value] of [...formData]) if (!value) formData.delete(name);
});

// ---- messages

const toast = document.getElementById("toast");
let toastTimer = 0;

export function notify(text) {
  toast.textContent = visible(text);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (toast.textContent = ""), 6000);
}

// ---- copying

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy], [data-copy-from]");
  if (!button) return;
  const text = button.dataset.copy ?? document.getElementById(button.dataset.copyFrom).textContent;
  try {
    await navigator.clipboard.writeText(text);
    notify("Copied");
  } catch {
    notify("The browser blocked copying");
  }
});

// ---- refreshing

let numRequests = 0;
let placed = 0;

/** Fetch the parts of this page that change, and replace them; a response that a later one has overtaken is dropped. */
export async function refresh(page) {
  const number = ++numRequests;
  const response = await fetch(page);
  if (response.status === 401 || response.status === 404) location.reload(); // shows the sign-in page, or that it is gone
  if (!response.ok) throw new Error(`${page}: ${response.status}`);
  const rendered = await response.text();
  if (number < placed) return;
  placed = number;
  place(rendered);
}

/** Replace the parts of this page that change by those of a rendered page. */
export function place(rendered) {
  const parts = new DOMParser().parseFromString(rendered, "text/html");
  for (const part of parts.querySelectorAll("[data-live]")) {
    const here = document.getElementById(part.id);
    if (here) morph(here, part);
  }
  tick();
}

/** Limit calls to one per `pause` milliseconds, never two at once; a call during a run causes one more run. */
export function throttled(work, pause) {
  let isRunning = false;
  let isRequested = false;
  return async function call() {
    isRequested = true;
    if (isRunning) return;
    isRunning = true;
    while (isRequested) {
      isRequested = false;
      try {
        await work();
      } catch (error) {
        console.debug(error); // the server is unavailable; the stream calls again when it is back
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
    isRunning = false;
  };
}
