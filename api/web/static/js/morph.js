// Makes a part of the page equal to another and keeps matching nodes, so that focus, selection and scrolling survive.
// Elements match by id, others by position.

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
    if (!to.hasAttribute(name) && !isFolding(from, name)) from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    const isTheFormsKey = name === "value" && from.type === "hidden" && from.name === "key"; // a repeat must keep it
    if (!isTheFormsKey && !isFolding(from, name) && from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
}

/** Whether the attribute folds a part, which the user does and undoes. */
function isFolding(element, name) {
  return name === "open" && element.nodeName === "DETAILS";
}

function copyChildren(from, to) {
  const byId = new Map([...from.children].filter((child) => child.id).map((child) => [child.id, child]));
  let here = from.firstChild;
  for (const target of [...to.childNodes]) {
    const match = target.id ? byId.get(target.id) : isAlike(here, target) ? here : undefined;
    if (!match) {
      from.insertBefore(document.importNode(target, true), here);
      continue;
    }
    if (match === here) here = here.nextSibling;
    else from.insertBefore(match, here);
    morph(match, target);
  }
  while (here) {
    const next = here.nextSibling;
    here.remove();
    here = next;
  }
}

function isAlike(node, target) {
  return node && !node.id && node.nodeType === target.nodeType && node.nodeName === target.nodeName;
}
