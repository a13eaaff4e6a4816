// A link that was pasted, or typed to its end: the server fetches it and keeps it, so that the video can be seen, cut and
// estimated before it is asked about. Whoever asks meanwhile does not wait: the question fetches it by itself.

import { showError } from "./field_errors.js";
import { refresh } from "./library.js";
import { chooseKept, currentMedia, describeLink } from "./player.js";

const input = document.getElementById("video_url");

const asked = new WeakSet(); // media whose question, or job, fetches the link
let fetching = null; // { media, controller }

function stop() {
  fetching?.controller.abort();
  fetching = null;
}

async function fetchLink() {
  const media = currentMedia();
  if (media?.kind !== "link" || media.videoId || asked.has(media) || fetching?.media === media) return;
  if (!/^https?:\/\/[^/]+\/./i.test(media.url)) return;
  stop();
  const own = (fetching = { media, controller: new AbortController() });
  describeLink("The server is fetching it…");
  const [response, body] = await keep(media.url, own.controller.signal);
  if (fetching !== own) return;
  fetching = null;
  if (!response?.ok) {
    describeLink("The server could not fetch it.");
    if (body) showError("video_url", body.error.message, { leads: false });
    return;
  }
  const name = body.filename ?? media.name;
  const url = `v1/videos/${body.id}/content`;
  const kind = body.kind === "image" ? "picture" : "video";
  chooseKept({ kind, name, url, videoId: body.id, size: body.size_bytes });
  refresh();
}

/** The server's answer and its body; nulls if there is none. */
async function keep(url, signal) {
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch("v1/videos", { method: "POST", headers, body: JSON.stringify({ video_url: url }), signal });
    return [response, await response.json()];
  } catch {
    return [null, null];
  }
}

input.addEventListener("change", fetchLink);
input.addEventListener("input", (event) => event.inputType?.startsWith("insertFrom") && fetchLink()); // pasted or dropped
document.addEventListener("media:change", ({ detail }) => detail !== fetching?.media && stop());
document.addEventListener("htmx:beforeRequest", ({ target }) => {
  if (!target.matches("#ask, #job")) return;
  stop();
  asked.add(currentMedia()); // its field goes now, which may be the end of typing
});
