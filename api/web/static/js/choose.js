// The list of jobs to compare: the button is disabled until two of them are chosen.
const button = document.getElementById("compare");
const form = button?.form;

function judge() {
  button.disabled = form.querySelectorAll("input[name=job]:checked").length < 2;
}

if (form) {
  form.addEventListener("change", judge);
  judge();
  addEventListener("pageshow", judge); // the browser restores boxes when the user goes back
}
