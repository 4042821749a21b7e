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
  const tab = document.querySelector(".tabs [aria-current]");
  if (tab) tab.parentElement.scrollLeft = tab.offsetLeft - 24;
  const wrong = document.querySelector("[aria-invalid=true]");
  if (wrong) wrong.focus();
});
// A form is sent once, however often it is clicked. What was clicked stays enabled until its value is on its way.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.sent || tooLarge(form)) return event.preventDefault();
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
// Files that are too large together are not sent, since the answer would come before they had all left.
function tooLarge(form) {
  let large = false;
  for (const input of form.querySelectorAll("input[type=file][data-most]")) {
    const over = [...input.files].reduce((sum, file) => sum + file.size, 0) > Number(input.dataset.most);
    document.getElementById(`${input.id}-large`).hidden = !over;
    large = large || over;
  }
  return large;
}
// Images dropped on a form become its files, and are shown before they are sent.
function showFiles(form) {
  const place = form.querySelector(".previews");
  for (const old of place.querySelectorAll("img")) URL.revokeObjectURL(old.src);
  place.replaceChildren(
    ...[...form.querySelector("input[type=file]").files].filter((file) => file.type.startsWith("image/")).map((file) => {
      const image = new Image();
      image.src = URL.createObjectURL(file);
      image.alt = file.name;
      image.title = file.name;
      return image;
    }),
  );
}
document.addEventListener("change", (event) => {
  if (event.target.type !== "file") return;
  const form = event.target.form;
  tooLarge(form);
  if (form.matches(".drop")) showFiles(form);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    const form = event.target.closest && event.target.closest("form.drop");
    if (!form) return;
    event.preventDefault();
    form.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) {
      form.querySelector("input[type=file]").files = event.dataTransfer.files;
      tooLarge(form);
      showFiles(form);
    }
  });
}
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const field = document.getElementById(button.dataset.copy);
  field.select();
  await navigator.clipboard.writeText(field.value).catch(() => document.execCommand("copy"));
  button.textContent = button.dataset.copied;
});
// What a page sends by itself and cannot be taken is said, not passed over: the session has ended, or the studio is away.
function sayUnsent(status) {
  const box = document.getElementById("unsent");
  const kind = { 0: "0", 401: "401" }[status] || "other";
  for (const each of box.children) each.hidden = each.dataset.for !== kind;
  box.hidden = status === 200;
  for (const each of document.querySelectorAll(".saved")) each.hidden = status !== 200;
}
let unsent = null;
for (const kind of ["htmx:responseError", "htmx:sendError"]) {
  document.addEventListener(kind, (event) => {
    sayUnsent(event.detail.xhr.status);
    unsent = event.detail.elt;
    if (kind === "htmx:sendError") setTimeout(() => unsent && sendAgain(), 3000);
  });
}
document.addEventListener("htmx:afterRequest", (event) => {
  if (!event.detail.successful || !unsent || (event.detail.elt !== unsent && unsent.isConnected)) return;
  unsent = null;
  sayUnsent(200);
});
function sendAgain() {
  if (unsent) htmx.trigger(unsent, unsent.matches("form") ? "change" : "load");
}
// Who signed in again in another tab and comes back goes on where they were: the page takes the new session's token.
document.addEventListener("visibilitychange", async () => {
  if (document.hidden || !unsent) return;
  const answer = await fetch("/account").catch(() => null);
  if (!answer || answer.redirected || !answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const token = page.querySelector("[name=csrf]").value;
  for (const each of document.querySelectorAll("[name=csrf]")) each.value = token;
  document.body.setAttribute("hx-headers", JSON.stringify({ "X-CSRF-Token": token }));
  sendAgain();
});
// What was typed stays when the page comes in another language: kept in this tab alone, for one load, without passwords and files.
function typed() {
  const fields = [...document.querySelectorAll("main :is(input, select, textarea)[name]")];
  return fields.filter((field) => !["hidden", "password", "file", "submit"].includes(field.type));
}
const isChoice = (field) => ["checkbox", "radio"].includes(field.type);
document.addEventListener("submit", (event) => {
  if (event.target.getAttribute("action") !== "/language") return;
  const values = typed().map((field) => [field.name, isChoice(field) ? field.checked : field.value]);
  sessionStorage.setItem("typed", JSON.stringify({ page: location.pathname, values }));
});
document.addEventListener("DOMContentLoaded", () => {
  const kept = JSON.parse(sessionStorage.getItem("typed") || "null");
  sessionStorage.removeItem("typed");
  const fields = typed();
  if (!kept || kept.page !== location.pathname || kept.values.length !== fields.length) return;
  fields.forEach((field, number) => {
    const [name, value] = kept.values[number];
    if (name === field.name) field[isChoice(field) ? "checked" : "value"] = value;
  });
});
