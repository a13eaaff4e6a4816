// The address follows what is open, a conversation, a kept video or a job, and `#t=12.3` is a moment in it.

import { currentMedia, seek } from "./player.js";

function follow(query, hash = "") {
  if (location.search !== query || location.hash !== hash) history.replaceState(null, "", `${location.pathname}${query}${hash}`);
}

function seekToHash() {
  const seconds = parseFloat(new URLSearchParams(location.hash.slice(1)).get("t"));
  if (seconds >= 0 && currentMedia()) seek(seconds, currentMedia().id);
}

function followMedia() {
  const { chat, videoId } = currentMedia() ?? {};
  follow(chat ? `?chat=${chat}` : videoId ? `?video=${videoId}` : "");
}

document.addEventListener("job:open", ({ detail }) => follow(`?job=${detail}`));
document.addEventListener("media:change", followMedia);
document.addEventListener("media:arrived", followMedia); // an upload has become a kept video
document.addEventListener("click", (event) => {
  const time = event.target.closest("a.time");
  if (time && event.defaultPrevented) follow(time.search, time.hash);
});
window.addEventListener("hashchange", seekToHash);
seekToHash();
