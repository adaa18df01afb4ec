// Sends the forms of buttons to the REST API, without a reload of the page. Without scripts, the browser posts the forms.
//
//   data-request   METHOD /path, where {field} is replaced by a field of the form
//   data-body      the JSON to send; by default, the fields that are not in the path
//   data-lists     names of fields that are lists
//
// The hidden field `key` is sent as Idempotency-Key, so that a repeated request creates nothing new.  A form gets a new
// key after a response, and when a value changes.
import { notify } from "./page.js";

/** `created` gets the body of every 201 response; `done` is called after each response. */
export function sendForms({ created = () => {}, done = () => {} } = {}) {
  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (!form.dataset.request) return;
    event.preventDefault();
    const button = event.submitter ?? form.querySelector("button");
    button.disabled = true;
    try {
      const response = await fetch(...request(form));
      const body = await response.json();
      if (!response.ok) notify(body.detail || body.title);
      else if (response.status === 201 || response.headers.has("Idempotency-Replayed")) created(body);
      renewKey(form);
      if (response.ok) {
        closePopovers();
        form.closest("details:not(.folds, .by-button)")?.removeAttribute("open");
      }
    } catch {
      notify("The server does not respond. Try again.");
    } finally {
      button.disabled = false;
      done();
    }
  });
}

function request(form) {
  const [method, pattern] = form.dataset.request.split(" ");
  const fields = new FormData(form);
  const headers = fields.has("key") ? { "Idempotency-Key": fields.get("key") } : {};
  fields.delete("key");
  const path = pattern.replace(/\{(\w+)\}/g, (_, name) => {
    const value = fields.get(name);
    fields.delete(name);
    return encodeURIComponent(value);
  });
  const body = form.dataset.body ?? json(fields, (form.dataset.lists ?? "").split(" "));
  return [path, body ? { method, body, headers: { ...headers, "Content-Type": "application/json" } } : { method, headers }];
}

function renewKey(form) {
  const key = form?.dataset.request && form.elements.key;
  if (!key) return;
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  key.value = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

document.addEventListener("change", (event) => renewKey(event.target.form));

function json(fields, lists) {
  const names = [...new Set(fields.keys())];
  if (!names.length) return "";
  return JSON.stringify(Object.fromEntries(names.map((n) => [n, lists.includes(n) ? fields.getAll(n) : fields.get(n)])));
}

// ---- panels below buttons: Escape or a click outside closes them

function closePopovers(except = null) {
  for (const open of document.querySelectorAll(".confirm[open]")) if (open !== except) open.removeAttribute("open");
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const button = document.activeElement?.closest(".confirm[open]")?.querySelector("summary");
  closePopovers();
  button?.focus(); // which would be lost with the panel
});
document.addEventListener("click", (event) => closePopovers(event.target.closest(".confirm")));
