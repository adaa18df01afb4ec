// The form of a new job is checked by the server while it is filled in: errors and deviations appear in place.
import { place, say, throttled } from "./page.js";

const form = document.getElementById("submit");

async function check() {
  const fields = new URLSearchParams(new FormData(form));
  fields.set("step", "plan");
  const answer = await fetch(form.action, { method: "POST", body: fields });
  if (answer.status === 401) location.reload();
  if (!answer.ok && answer.status !== 422) return say("The server could not check the form.");
  place(await answer.text());
  for (const wrong of form.querySelectorAll("details .wrong")) wrong.closest("details").open = true;
}

const checkSoon = throttled(check, 400);
let typing = 0;
form.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(checkSoon, 250);
});
form.addEventListener("submit", (event) => {
  if (event.submitter?.value !== "plan") return;
  event.preventDefault();
  checkSoon();
});
document.getElementById("preset")?.addEventListener("change", (event) => event.target.form.submit());
checkSoon();
