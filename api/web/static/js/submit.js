// The form of a new job or sweep is checked by the server while it is filled in: errors and deviations appear in place.
import { place, say, throttled } from "./page.js";

const form = document.getElementById("submit");

async function check(step) {
  const fields = new URLSearchParams(new FormData(form));
  fields.set("step", step);
  const answer = await fetch(form.action, { method: "POST", body: fields });
  if (answer.status === 401) location.reload();
  if (!answer.ok && answer.status !== 422) return say("The server could not check the form.");
  place(await answer.text());
  for (const wrong of form.querySelectorAll("details .wrong")) wrong.closest("details").open = true;
}

const checkSoon = throttled(() => check("plan"), 400);
let typing = 0;
form.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(checkSoon, 250);
});
form.addEventListener("submit", async (event) => {
  const step = event.submitter?.value;
  if (step === "submit") return;
  event.preventDefault();
  if (step === "row") await check(step);
  checkSoon();
});
document.getElementById("preset")?.addEventListener("change", (event) => event.target.form.submit());
if (!("unfilled" in form.dataset)) checkSoon(); // else it is only wrong because nobody has filled it in yet
