// Touch gestures on a surface: position, movement and spread of one or two fingers.  With `touch-action: pan-y`, one
// finger that moves vertically scrolls the page; two fingers always belong to the surface.

const MIN_SPREAD = 20; // pixels; below this, the ratio of spreads is not meaningful

function together(points) {
  const [a, b = a] = points;
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, spread: Math.max(MIN_SPREAD, Math.hypot(a.x - b.x, a.y - b.y)) };
}

/** Call `moved` on each movement, with the `count` of fingers (1 or 2), their middle `x`, `y`, its shift `dx`, `dy` and the
 *  `factor` of their spread; call `left` when the last finger is lifted. */
export function follow(surface, { moved, left = () => {} }) {
  const fingers = new Map();
  const place = ({ clientX, clientY }) => {
    const box = surface.getBoundingClientRect();
    return { x: clientX - box.left, y: clientY - box.top };
  };
  const gone = ({ pointerId }) => fingers.delete(pointerId) && !fingers.size && left();

  // Otherwise two fingers that move together would scroll the page.
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
