// The estimate of the question that is being put together: tells htmx which video it is about, and waits for one.

import { currentMedia } from "./player.js";

const line = document.getElementById("estimate");

line.addEventListener("htmx:configRequest", (event) => {
  const data = event.detail.parameters;
  const videoId = currentMedia()?.videoId;
  if (!videoId) return event.preventDefault();
  data.video_id = videoId;
  delete data.video_url;
  for (const [name, value] of Object.entries(data)) if (value === "") delete data[name];
});
document.addEventListener("media:change", () => {
  const media = currentMedia();
  line.textContent = media && !media.videoId ? "What the question takes is shown once the server has the video." : "";
});
