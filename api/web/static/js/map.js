// The map of a feature space: points on a zoomable canvas, and a thumbnail beside the pointer.  Choices are in the
// address; the page that the server renders for an address is put in place without leaving it.
import { follow } from "./fingers.js";
import { refresh, notify, throttled } from "./page.js";
import { visible } from "./text.js";

const REACH = 14; // distance from the pointer, in pixels, within which a point is selected
const RADIUS = 3.2;
const MARGIN = 1.06;
const MAX_ZOOM = 60;

const page = document.getElementById("map");
const stage = document.getElementById("stage");
const canvas = document.getElementById("canvas");
const tip = document.getElementById("tip");
const thumbnail = tip.querySelector("canvas");
const picture = new Image();
const show = throttled(() => refresh(location.href).then(() => requestAnimationFrame(draw)), 50);

let facts = null;
let at = { scale: 1, x: 0, y: 0 }; // centre and magnification of the visible part
let pointed = null; // index into the lists of the map

// ---- drawing

/** The choices in the rendered page. */
function choices() {
  const { layout, colour, only, place } = document.getElementById("map-choices").dataset;
  return {
    points: facts[layout],
    keys: colour === "weak" ? facts.components : facts.labels,
    only: only === "" ? null : Number(only),
    chosen: place === "" ? null : Number(place),
  };
}

function colours() {
  const swatch = document.createElement("i");
  document.getElementById("map-legend").append(swatch);
  const resolved = (token, className = "") => {
    swatch.className = className;
    swatch.style.color = `var(${token})`;
    return getComputedStyle(swatch).color;
  };
  const classes = Array.from({ length: 10 }, (_, number) => resolved("--mark", `class-${number + 1}`));
  const palette = { classes: [resolved("--text-3"), ...classes], faded: resolved("--line"), text: resolved("--text"), links: resolved("--text-2") };
  swatch.remove();
  return palette;
}

function colourOf(palette, key) {
  return palette.classes[key === null ? 0 : (key % 10) + 1];
}

/** The position of a point in CSS pixels of the canvas. */
function placed([x, y]) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const unit = (Math.min(width, height) / 2 / MARGIN) * at.scale;
  return [width / 2 + (x - at.x) * unit, height / 2 + (y - at.y) * unit];
}

function draw() {
  if (!facts || !canvas.clientWidth) return;
  const { points, keys, only, chosen } = choices();
  const palette = colours();
  canvas.width = Math.round(canvas.clientWidth * devicePixelRatio);
  canvas.height = Math.round(canvas.clientHeight * devicePixelRatio);
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  const dot = (place, radius, fill, ring = null) => {
    const [x, y] = placed(points[place]);
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fillStyle = fill;
    context.fill();
    if (!ring) return;
    context.strokeStyle = ring;
    context.lineWidth = 2;
    context.stroke();
  };
  const radius = RADIUS * Math.min(2.2, Math.sqrt(at.scale));
  const isKept = (place) => only === null || keys[place] === only;
  points.forEach((_, place) => isKept(place) || dot(place, radius, palette.faded));
  points.forEach((_, place) => isKept(place) && dot(place, radius, colourOf(palette, keys[place])));
  if (chosen !== null) drawNeighbours(context, points, chosen, palette);
  for (const place of chosen === null ? [] : facts.neighbours[chosen]) dot(place, radius + 1, colourOf(palette, keys[place]), palette.links);
  for (const place of new Set([chosen, pointed])) if (place !== null) dot(place, radius + 2.5, colourOf(palette, keys[place]), palette.text);
  stage.dataset.drawn = String(points.length);
  stage.dataset.scale = at.scale.toFixed(2);
}

function drawNeighbours(context, points, chosen, palette) {
  context.strokeStyle = palette.links;
  context.lineWidth = 1;
  context.beginPath();
  for (const near of facts.neighbours[chosen]) {
    context.moveTo(...placed(points[chosen]));
    context.lineTo(...placed(points[near]));
  }
  context.stroke();
}

// ---- pointing

function nameOf(place) {
  const label = facts.labels[place];
  const name = label === null ? "" : `, class ${facts.class_names[label] ?? label}`;
  const file = facts.files ? `, ${facts.files[place]}` : "";
  return `Image ${facts.indices[place]}${name}${file}`;
}

function point(place) {
  pointed = place;
  tip.hidden = place === null;
  if (place !== null) {
    const { tile, columns } = facts;
    thumbnail.width = thumbnail.height = tile;
    const from = [(place % columns) * tile, Math.floor(place / columns) * tile, tile, tile];
    if (picture.complete && picture.naturalWidth) thumbnail.getContext("2d").drawImage(picture, ...from, 0, 0, tile, tile);
    tip.querySelector("span").textContent = visible(nameOf(place));
    const [x, y] = placed(choices().points[place]);
    const left = x + 14 + tip.offsetWidth > canvas.clientWidth ? x - 14 - tip.offsetWidth : x + 14;
    const top = Math.min(Math.max(0, y - tip.offsetHeight / 2), canvas.clientHeight - tip.offsetHeight);
    tip.style.transform = `translate(${Math.max(0, left)}px, ${top}px)`;
  }
  requestAnimationFrame(draw);
}

/** The point nearest to a position, of those that pass a test, and its distance. */
function nearest(x, y, passes = () => true) {
  let [closest, best] = [null, Infinity];
  choices().points.forEach((each, place) => {
    const [dx, dy] = placed(each).map((value, axis) => value - (axis ? y : x));
    const distance = Math.hypot(dx, dy);
    if (distance < best && passes(dx, dy, distance)) [closest, best] = [place, distance];
  });
  return [closest, best];
}

function under(event) {
  const [place, distance] = nearest(event.offsetX, event.offsetY);
  return distance <= REACH ? place : null;
}

function choose(place) {
  const query = new URLSearchParams(location.search);
  if (place === null) query.delete("image");
  else query.set("image", facts.indices[place]);
  go(`${location.pathname}?${query}`);
}

// ---- zoom

function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  if (!factor) at = { scale: 1, x: 0, y: 0 };
  else {
    const unit = Math.min(canvas.clientWidth, canvas.clientHeight) / 2 / MARGIN;
    const [dx, dy] = [(x - canvas.clientWidth / 2) / unit, (y - canvas.clientHeight / 2) / unit];
    const scale = Math.min(MAX_ZOOM, Math.max(1, at.scale * factor));
    // The point under the pointer keeps its position.
    at = { scale, x: at.x + dx / at.scale - dx / scale, y: at.y + dy / at.scale - dy / scale };
  }
  point(pointed);
}

function pan(dx, dy) {
  const unit = (Math.min(canvas.clientWidth, canvas.clientHeight) / 2 / MARGIN) * at.scale;
  at = { ...at, x: at.x - dx / unit, y: at.y - dy / unit };
  requestAnimationFrame(draw);
}

// ---- mouse, touch and keys

let drag = null;

canvas.addEventListener("pointerdown", (event) => {
  drag = event.isPrimary ? { x: event.offsetX, y: event.offsetY, moved: 0 } : null;
});
canvas.addEventListener("pointermove", (event) => {
  if (!facts || (!drag && event.pointerType === "touch")) return;
  if (!drag) return point(under(event));
  const [dx, dy] = [event.offsetX - drag.x, event.offsetY - drag.y];
  drag = { x: event.offsetX, y: event.offsetY, moved: drag.moved + Math.hypot(dx, dy) };
  if (drag.moved > 4) pan(dx, dy);
});
addEventListener("pointerup", (event) => {
  const wasClick = drag && drag.moved <= 4 && event.target === canvas;
  drag = null;
  if (!wasClick || !facts) return;
  const place = under(event);
  if (place !== null) choose(place);
});
addEventListener("pointercancel", () => (drag = null));
follow(canvas, {
  moved({ count, x, y, dx, dy, factor }) {
    if (count < 2 || !facts) return;
    pan(dx, dy);
    zoom(factor, x, y);
  },
});
canvas.addEventListener("pointerleave", () => facts && point(null));
canvas.addEventListener("dblclick", (event) => zoom(2, event.offsetX, event.offsetY));
// The wheel scrolls the page; it zooms with Ctrl, or while the map has the focus.
canvas.addEventListener(
  "wheel",
  (event) => {
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
  },
  { passive: false },
);
canvas.addEventListener("blur", () => facts && point(null));

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

canvas.addEventListener("keydown", (event) => {
  if (!facts || event.ctrlKey || event.metaKey || event.altKey) return;
  const direction = DIRECTIONS[event.key];
  if (direction) walk(direction);
  else if (event.key === "Enter" && pointed !== null) choose(pointed);
  else if (event.key === "+" || event.key === "=") zoom(1.5);
  else if (event.key === "-") zoom(1 / 1.5);
  else if (event.key === "0") zoom(0);
  else return;
  event.preventDefault();
});

/** Move to the nearest point that lies more in this direction than to its side. */
function walk([right, down]) {
  const from = pointed ?? choices().chosen;
  if (from === null) return point(nearest(canvas.clientWidth / 2, canvas.clientHeight / 2)[0]);
  const [x, y] = placed(choices().points[from]);
  const isAhead = (dx, dy) => {
    const [ahead, beside] = [dx * right + dy * down, Math.abs(dx * down + dy * right)];
    return ahead > 0.01 && ahead >= beside;
  };
  const [place] = nearest(x, y, isAhead);
  if (place !== null) point(place);
}

stage.addEventListener("click", (event) => {
  const button = event.target.closest("[data-zoom]");
  if (button && facts) zoom(Number(button.dataset.zoom));
});

// ---- addresses

page.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-choice]");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(link.href);
});
page.addEventListener("submit", (event) => {
  if (!event.target.matches(".choose-image")) return;
  event.preventDefault();
  go(`${location.pathname}?${new URLSearchParams(new FormData(event.target))}`);
});

function go(address) {
  history.pushState(null, "", address);
  show();
}

addEventListener("popstate", show);
document.addEventListener("themechange", draw);
new ResizeObserver(draw).observe(stage);

// ---- loading

try {
  const response = await fetch(page.dataset.facts);
  if (!response.ok) throw new Error(`${page.dataset.facts}: ${response.status}`);
  facts = await response.json();
  picture.src = page.dataset.picture;
  picture.addEventListener("load", () => point(pointed));
  canvas.hidden = false;
  draw();
} catch (error) {
  console.debug(error); // the picture that the server drew is still shown
  notify("The points could not be loaded, so the map cannot be zoomed. Reload the page.");
}
