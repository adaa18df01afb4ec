// What every page has: the theme's switch, ages that go on, buttons that copy, short messages, refreshing in place.
import { morph } from "./morph.js";

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
    // Not kept, but switched.
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

// Ages are by the clock that wrote the times; this machine's may differ, so the difference at loading is kept.
const skew = Number(root.dataset.now || Date.now()) - Date.now();

/** The time by the server's clock, in milliseconds. */
export function now() {
  return Date.now() + skew;
}

function tick() {
  for (const time of document.querySelectorAll("time.age, time.ago")) {
    const shown = age(now() - Date.parse(time.dateTime));
    time.textContent = time.className === "age" || shown === "now" ? shown : `${shown} ago`;
  }
}

setInterval(tick, 5000);

// ---- rows of links that are wider than a phone: where one is, is in sight, and an end fades where there is more

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

// ---- short messages

const toast = document.getElementById("toast");
let toastTimer = 0;

export function say(text) {
  toast.textContent = text;
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
    say("Copied");
  } catch {
    say("The browser blocked copying");
  }
});

// ---- refreshing

/** Fetch the parts of this page that change, and put them in their places. */
export async function refresh(address) {
  const answer = await fetch(address);
  if (answer.status === 401) location.reload(); // shows the sign-in page
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  place(await answer.text());
}

/** Put the parts of a rendered page that change into their places in this one. */
export function place(rendered) {
  const parts = new DOMParser().parseFromString(rendered, "text/html");
  for (const part of parts.querySelectorAll("[data-live]")) {
    const here = document.getElementById(part.id);
    if (here) morph(here, part);
  }
  tick();
}

/** At most one call each `pause` milliseconds, never two at once; a call while one runs is made up for. */
export function throttled(work, pause) {
  let isRunning = false;
  let isWanted = false;
  return async function call() {
    isWanted = true;
    if (isRunning) return;
    isRunning = true;
    while (isWanted) {
      isWanted = false;
      try {
        await work();
      } catch (error) {
        console.debug(error); // the server is away; the stream will call again when it is back
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
    isRunning = false;
  };
}
