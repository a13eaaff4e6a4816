// A question that waits until its file has arrived. There is at most one.

import { formatBytes } from "./format.js";

let held = null;

/** Call `show` with the progress in words and from 0 to 1, and `go` once the upload has ended, however it ended. */
export function hold(upload, show, go) {
  const question = (held = {});
  const onChange = () => held === question && show(describe(upload), upload.share);
  upload.addEventListener("change", onChange);
  onChange();
  upload.ended.then(() => {
    upload.removeEventListener("change", onChange);
    if (held !== question) return;
    held = null;
    go();
  });
}

/** Give the question up, not the file; returns whether there was one. */
export function release() {
  const was = held !== null;
  held = null;
  return was;
}

function describe({ state, sent, share, file }) {
  if (state === "waiting") return "Waiting for other files";
  if (state === "checking") return "Uploaded, checking the file";
  if (state === "broken") return "The upload broke off; retry it under “Your videos”";
  return `Uploading ${formatBytes(sent)} of ${formatBytes(file.size)}, ${Math.floor(share * 100)} %`;
}
