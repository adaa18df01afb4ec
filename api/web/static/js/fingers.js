// Fingers on a surface: where they are together, where they go and how they spread.  With `touch-action: pan-y` one
// finger that moves up or down scrolls the page, and the surface hears no more of it; two belong to the surface.

const MIN_SPREAD = 20; // pixels; nearer fingers tell no ratio

function together(points) {
  const [a, b = a] = points;
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, spread: Math.max(MIN_SPREAD, Math.hypot(a.x - b.x, a.y - b.y)) };
}

/** `moved` is told of each move: `count` fingers (1 or 2), their middle `x`, `y` in the surface, the way `dx`, `dy` that it
 *  went and the `factor` by which they spread; `left` is told once no finger is there. */
export function follow(surface, { moved, left = () => {} }) {
  const fingers = new Map();
  const place = ({ clientX, clientY }) => {
    const box = surface.getBoundingClientRect();
    return { x: clientX - box.left, y: clientY - box.top };
  };
  const gone = ({ pointerId }) => fingers.delete(pointerId) && !fingers.size && left();

  // Else two fingers that move alike would scroll the page.
  const keep = (event) => event.touches.length > 1 && event.cancelable && event.preventDefault();
  surface.addEventListener("touchstart", keep, { passive: false });
  surface.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" && fingers.size < 2) fingers.set(event.pointerId, place(event));
  });
  surface.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    const before = together([...fingers.values()]);
    fingers.set(event.pointerId, place(event));
    const { x, y, spread } = together([...fingers.values()]);
    moved({ count: fingers.size, x, y, dx: x - before.x, dy: y - before.y, factor: spread / before.spread });
  });
  surface.addEventListener("pointerup", gone);
  surface.addEventListener("pointercancel", gone);
}
