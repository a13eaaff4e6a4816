// Files dropped, or pasted, anywhere on the page.

import { takeFiles } from "./files.js";

let depth = 0;
const isFileDrag = (event) => event.dataTransfer?.types.includes("Files");
const veil = (on) => document.body.classList.toggle("dragging", on);

document.addEventListener("dragenter", (event) => {
  if (isFileDrag(event)) veil((depth += 1) > 0);
});
document.addEventListener("dragleave", (event) => {
  if (isFileDrag(event)) veil((depth = Math.max(0, depth - 1)) > 0);
});
document.addEventListener("dragover", (event) => isFileDrag(event) && event.preventDefault());
document.addEventListener("drop", (event) => {
  if (!isFileDrag(event)) return;
  event.preventDefault();
  veil(Boolean((depth = 0)));
  takeFiles(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  takeFiles(event.clipboardData?.files ?? []);
});
