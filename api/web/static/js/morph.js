// Make one part of the page equal to another, keeping the nodes that stay: focus, selection and scrolling survive.
// Elements with an id are found again by it; others by their place.

export function morph(from, to) {
  if (from.isEqualNode(to)) return;
  if (from.nodeType !== Node.ELEMENT_NODE) {
    from.nodeValue = to.nodeValue;
    return;
  }
  copyAttributes(from, to);
  copyChildren(from, to);
}

function copyAttributes(from, to) {
  for (const { name } of [...from.attributes]) {
    const isTheReaders = name === "open" && from.nodeName === "DETAILS";
    if (!to.hasAttribute(name) && !isTheReaders) from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    const isTheFormsKey = name === "value" && from.type === "hidden" && from.name === "key"; // a repeat must keep it
    if (!isTheFormsKey && from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
}

function copyChildren(from, to) {
  const known = new Map([...from.children].filter((child) => child.id).map((child) => [child.id, child]));
  let here = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    const match = wanted.id ? known.get(wanted.id) : isAlike(here, wanted) ? here : undefined;
    if (!match) {
      from.insertBefore(document.importNode(wanted, true), here);
      continue;
    }
    if (match === here) here = here.nextSibling;
    else from.insertBefore(match, here);
    morph(match, wanted);
  }
  while (here) {
    const next = here.nextSibling;
    here.remove();
    here = next;
  }
}

function isAlike(node, wanted) {
  return node && !node.id && node.nodeType === wanted.nodeType && node.nodeName === wanted.nodeName;
}
