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
line.addEventListener("htmx:beforeSwap", ({ detail }) => {
  if (!detail.isError) return;
  detail.shouldSwap = false; // it is no error of the form
  line.textContent = "There is no estimate: the server does not take more requests now.";
});
line.addEventListener("htmx:sendError", () => (line.textContent = "There is no estimate: the server could not be reached."));

function showWhatIsAwaited() {
  const media = currentMedia();
  if (!media) line.textContent = "";
  else if (media.videoId) line.textContent = "Estimating…";
  else if (media.upload?.state === "refused") line.textContent = "There is no estimate, since the server does not take the file.";
  else line.textContent = "What the question takes is shown once the server has the video.";
}

for (const name of ["media:change", "media:arrived"]) document.addEventListener(name, showWhatIsAwaited);
