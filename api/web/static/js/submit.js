// The server checks the form of a new job or sweep while it is filled in: errors and preset deviations appear in place.
import { place, notify, throttled } from "./page.js";

const form = document.getElementById("submit");

async function check(step) {
  const fields = new URLSearchParams(new FormData(form));
  fields.set("step", step);
  const response = await fetch(form.action, { method: "POST", body: fields });
  if (response.status === 401) location.reload();
  if (!response.ok && response.status !== 422) return notify("The server could not check the form.");
  place(await response.text());
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
// Another answer fills the form anew: the name that was typed goes along, and the page stays where it is.
document.addEventListener("click", (event) => {
  const choice = event.target.closest("a[data-choice]");
  if (!choice) return;
  const answer = new URL(choice.href);
  if (form.elements.name.value) answer.searchParams.set("name", form.elements.name.value);
  choice.href = answer.href;
  sessionStorage.setItem("scroll", String(scrollY));
});
scrollTo(0, Number(sessionStorage.getItem("scroll") ?? scrollY));
sessionStorage.removeItem("scroll");
if (!("unfilled" in form.dataset)) checkSoon(); // an empty form has errors only because it is not filled in yet
