// Files that were chosen, dropped or pasted: each is uploaded, and the first of them is shown on the stage.

import { register } from "./actions.js";
import { formatBytes } from "./format.js";
import { refresh } from "./library.js";
import { chooseFile } from "./player.js";
import { Upload } from "./upload.js";
import { addRow } from "./upload_rows.js";

const input = document.getElementById("video");
const limit = Number(input.dataset.maxBytes);

export function takeFiles(files) {
  if (files.length) document.querySelector(".samples-field")?.before(document.querySelector(".shelf")); // what one has goes first
  show(files);
}

function show(files) {
  let isShown = false;
  for (const file of files) {
    const upload = new Upload(file, faultOf(file));
    addRow(upload);
    if (!isShown && !upload.isFinal) chooseFile(file, upload);
    isShown ||= !upload.isFinal;
    upload.ended.then((state) => state === "done" && refresh());
  }
}

function faultOf(file) {
  if (file.size > limit) return `The file has ${formatBytes(file.size)}; this server accepts at most ${formatBytes(limit)}.`;
  return file.size ? "" : "The file is empty.";
}

input.addEventListener("change", () => {
  takeFiles(input.files);
  input.value = ""; // the form itself sends no file; and the same one can be chosen again
});
register({
  async sample(button) {
    const response = await fetch(button.dataset.url);
    show([new File([await response.blob()], button.dataset.name, { type: "video/mp4", lastModified: 0 })]);
    const prompt = document.getElementById("prompt");
    if (!prompt.value.trim()) prompt.value = prompt.placeholder;
  },
});
