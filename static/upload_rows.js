// A row for every file on its way: what it does, how fast, how long yet; cancel, and retry what broke off.

import { register } from "./actions.js";
import { formatBytes, formatSpan } from "./format.js";

const list = document.getElementById("uploads");
const news = document.getElementById("shelf-news");
const uploads = new WeakMap(); // row -> Upload

export function addRow(upload) {
  const row = document.getElementById("upload-row").content.cloneNode(true).firstElementChild;
  uploads.set(row, upload);
  row.querySelector(".row-name").textContent = upload.file.name;
  row.querySelector("progress").ariaLabel = `Upload of ${upload.file.name}`;
  list.append(row);
  upload.addEventListener("change", () => show(row, upload));
  show(row, upload);
  row.scrollIntoView({ block: "nearest" });
}

function show(row, upload) {
  const hadFocus = row.contains(document.activeElement);
  if (row.dataset.state !== upload.state) announce(upload);
  row.dataset.state = upload.state;
  row.querySelector(".row-facts").textContent = describe(upload);
  row.querySelector("progress").value = upload.share;
  const cancel = row.querySelector('[data-action="cancelUpload"]');
  cancel.title = upload.isFinal ? "Dismiss" : "Cancel";
  cancel.ariaLabel = `${cancel.title} ${upload.file.name}`;
  if (upload.state === "done" || upload.state === "cancelled") leave(row, hadFocus);
}

function leave(row, hadFocus) {
  const next = row.nextElementSibling ?? row.previousElementSibling;
  row.remove();
  if (hadFocus) (next?.querySelector('[data-action="cancelUpload"]') ?? document.getElementById("shelf-search")).focus();
}

function describe(upload) {
  const { sent, share, speed, secondsLeft, file, message } = upload;
  const percent = `${Math.floor(share * 100)} %`;
  switch (upload.state) {
    case "waiting": return `${formatBytes(file.size)}, waiting`;
    case "sending": {
      const facts = [`${percent} of ${formatBytes(file.size)}`];
      if (speed && sent) facts.push(`${formatBytes(speed)}/s`, `${formatSpan(secondsLeft)} left`);
      return facts.join(" · ");
    }
    case "checking": return "Sent, checking the file";
    case "retrying": return `Connection lost at ${percent}, trying again`;
    case "broken": return `Broken off at ${percent}; Retry goes on from there`;
    default: return message;
  }
}

/** To a screen reader: what a row has come to, not every step on its way. */
function announce({ state, file, message }) {
  const text = { done: "is uploaded", broken: "broke off", refused: `was refused: ${message}`, cancelled: "was cancelled" }[state];
  if (text) news.textContent = `${file.name} ${text}`;
}

register({
  retryUpload: (button) => uploads.get(button.closest("li")).start(),
  cancelUpload(button) {
    const row = button.closest("li");
    const upload = uploads.get(row);
    if (upload.isFinal) leave(row, true);
    else upload.cancel();
  },
});
window.addEventListener("online", () => {
  for (const row of list.children) if (row.dataset.state === "broken") uploads.get(row).start();
});
