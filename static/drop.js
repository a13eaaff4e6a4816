// Files dropped, or pasted, anywhere on the page.

import { chooseFile } from "./player.js";

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
  if (event.dataTransfer.files.length) chooseFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) chooseFile(event.clipboardData.files[0]);
});
