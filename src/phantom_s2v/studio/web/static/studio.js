// Times are shown as the reader's clock has them.
function localTimes(root) {
  for (const each of root.querySelectorAll("time[data-local]")) {
    const at = new Date(each.dateTime);
    if (!isNaN(at)) each.textContent = at.toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
    each.removeAttribute("data-local");
  }
}
document.addEventListener("htmx:load", (event) => localTimes(event.detail.elt));
document.addEventListener("DOMContentLoaded", () => {
  localTimes(document);
  const wrong = document.querySelector("[aria-invalid=true]");
  if (wrong) wrong.focus();
});
// A form is sent once, however often it is clicked. What was clicked stays enabled until its value is on its way.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.sent) return event.preventDefault();
  if (form.method === "post") {
    form.dataset.sent = "yes";
    form.setAttribute("aria-busy", "true");
  }
});
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    form.removeAttribute("aria-busy");
  }
});
