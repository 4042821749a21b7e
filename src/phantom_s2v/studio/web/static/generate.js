// A proposal goes into the prompt when its button is pressed, and not before; the form then saves itself as if it had been typed.
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-take]");
  if (!button) return;
  const into = document.querySelector(button.dataset.into);
  into.value = document.querySelector(button.dataset.take).textContent;
  into.dispatchEvent(new Event("input", { bubbles: true }));
  into.focus();
});
