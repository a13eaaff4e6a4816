// The list of kept videos: one is picked to be asked about, or deleted; files that arrive join it. htmx fetches its rows.

import { register } from "./actions.js";
import { chooseKept, clear, currentMedia } from "./player.js";

const rows = document.getElementById("shelf-rows");
const news = document.getElementById("shelf-news");

/** Fetch the list anew. */
export const refresh = () => htmx.trigger(document.body, "library:change");

function markPicked() {
  const id = currentMedia()?.videoId;
  for (const row of rows.querySelectorAll(".kept")) {
    row.querySelector(".kept-pick").ariaPressed = String(row.dataset.videoId === id);
  }
}

register({
  pickVideo(button) {
    const { kind, name, url, videoId, size } = button.closest(".kept").dataset;
    chooseKept({ kind, name, url, videoId, size: Number(size) });
  },
  async deleteVideo(button) {
    const row = button.closest(".kept");
    const { name, videoId } = row.dataset;
    if (!window.confirm(`Delete “${name}”? Conversations about it stay, without it.`)) return;
    const response = await fetch(`v1/videos/${videoId}`, { method: "DELETE" }).catch(() => null);
    if (!response?.ok && response?.status !== 404) {
      news.textContent = `${name} could not be deleted.`;
      return;
    }
    news.textContent = `${name} is deleted.`;
    if (currentMedia()?.videoId === videoId) clear();
    const next = row.nextElementSibling ?? row.previousElementSibling;
    (next?.querySelector("button") ?? document.getElementById("shelf-search")).focus();
    refresh();
  },
});
document.addEventListener("media:change", markPicked);
document.addEventListener("htmx:afterSwap", (event) => rows.contains(event.target) && markPicked());
