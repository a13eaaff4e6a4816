// What the page came with, as its address says: a conversation or a kept video goes onto the stage. The frames that the
// model saw are fetched when they are needed.

import { chooseKept, currentMedia } from "./player.js";

const answers = document.getElementById("answers");
const strips = document.getElementById("strips");

function loadStrip(card) {
  const { token, frames } = card.dataset;
  if (!frames || strips.querySelector(`[data-token="${token}"]`)) return;
  htmx.ajax("GET", frames, { target: "#strips", swap: "afterbegin" });
}

const { kind, name, url, chat, videoId } = answers.dataset;
if (videoId) {
  chooseKept({ kind, name, url, chat, videoId });
  for (const card of answers.children) card.dataset.media = currentMedia().id;
  if (answers.firstElementChild) loadStrip(answers.firstElementChild);
}

document.addEventListener("click", (event) => {
  const card = event.target.closest('[data-action="seek"]')?.closest(".answer");
  if (card) loadStrip(card);
});
