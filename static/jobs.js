// Jobs on the page: sends their form with the video on the stage, and ties a job's card to its video.

import { chooseKept, currentMedia } from "./player.js";

const form = document.getElementById("job");
const slot = document.getElementById("job-slot");
const error = document.getElementById("error-job");

form.addEventListener("htmx:confirm", (event) => {
  const upload = currentMedia()?.upload;
  if (!upload || upload.isFinal) return;
  event.preventDefault();
  error.textContent = "It starts as soon as the video has arrived.";
  upload.ended.then(() => event.detail.issueRequest(true));
});
form.addEventListener("htmx:configRequest", (event) => {
  const data = event.detail.parameters;
  const media = currentMedia();
  const isBatch = data.kind === "batch";
  error.textContent = "";
  if (!media) error.textContent = "Choose a video first, or paste a link to one.";
  else if (!isBatch && !data.prompt?.trim()) error.textContent = "Type the question that is to be answered in the end, above.";
  if (error.textContent) return event.preventDefault();
  if (media.videoId) {
    data.video_id = media.videoId;
    delete data.video_url;
  }
  for (const [name, value] of Object.entries(data)) if (value === "") delete data[name];
});

/** Put the card's video on the stage, unless it is the one that is there. */
function bind(card) {
  const { kind, name, url, videoId } = card.dataset;
  const media = currentMedia();
  if (media && !media.videoId && form.contains(document.activeElement)) media.videoId = videoId;
  if (videoId && currentMedia()?.videoId !== videoId) chooseKept({ kind, name, url, videoId });
  card.dataset.media = currentMedia()?.id ?? "";
}

document.addEventListener("htmx:afterSwap", ({ target }) => {
  const card = slot.querySelector(".job");
  if (!card || !(target === slot || target === card || target.contains(slot))) return;
  if (!card.dataset.media) bind(card);
  if (target === slot) card.scrollIntoView({ block: "nearest" });
  document.dispatchEvent(new CustomEvent("job:open", { detail: card.dataset.job }));
});

// The keyboard's place: what had it may go with the swap, and a job's next state has other buttons.

let hadFocus = false;

for (const name of ["htmx:beforeSwap", "htmx:sseBeforeMessage"]) {
  document.addEventListener(name, () => (hadFocus = slot.contains(document.activeElement)));
}
for (const name of ["htmx:afterSwap", "htmx:sseMessage"]) {
  document.addEventListener(name, () => {
    if (hadFocus && !slot.contains(document.activeElement)) {
      (slot.querySelector(".job-actions :is(button, a)") ?? document.querySelector("#background summary")).focus();
    }
    hadFocus = false;
  });
}

const opened = slot.querySelector(".job");
if (opened) bind(opened);
