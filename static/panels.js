// The panels in the page's head: what is in one is fetched when it is opened, and ends when it is closed.

for (const panel of document.querySelectorAll("details.past")) {
  panel.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target === panel && !panel.open) event.preventDefault();
  });
  panel.addEventListener("htmx:beforeSwap", (event) => {
    if (!panel.open) event.detail.shouldSwap = false; // it was closed meanwhile
  });
  panel.addEventListener("toggle", () => {
    if (!panel.open) htmx.swap(panel.querySelector(".past-panel"), "", { swapStyle: "innerHTML" }); // streams and timers too
  });
}
document.addEventListener("DOMContentLoaded", () => {
  for (const panel of document.querySelectorAll("details.past[open]")) htmx.trigger(panel, "toggle"); // opened before htmx listened
});
document.addEventListener("keydown", (event) => {
  const panel = event.key === "Escape" && event.target.closest?.("details.past[open]");
  if (!panel) return;
  panel.open = false;
  panel.querySelector("summary").focus();
});
