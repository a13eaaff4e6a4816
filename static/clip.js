// The part of the clip that is asked about: two handles below the player, which follow the form's fields and set them.
// The part belongs to its clip: another clip has its own. Marks show where the last answer's frames lie.

import { register } from "./actions.js";
import { clearErrors } from "./field_errors.js";
import { formatClock } from "./format.js";
import { currentMedia, seek } from "./player.js";

const LONG_SECONDS = 600; // from here on the handles go by whole seconds

const player = document.getElementById("player");
const strips = document.getElementById("strips");
const clip = document.getElementById("clip");
const track = clip.querySelector(".clip-track");
const marks = clip.querySelector(".clip-marks");
const [start, end] = ["clip-start", "clip-end"].map((id) => document.getElementById(id));
const [from, to] = ["video_start", "video_end"].map((id) => document.getElementById(id));
const parts = new Map(); // media id -> what the two fields said when it left the stage

let shownId = null;

/** The clip's length is known, or no longer. */
function measure() {
  const isKnown = player.duration > 0 && isFinite(player.duration);
  clip.classList.toggle("is-known", isKnown);
  if (!isKnown) return;
  const step = player.duration > LONG_SECONDS ? 1 : 0.1;
  for (const handle of [start, end]) {
    handle.step = step;
    handle.max = (Math.ceil(player.duration / step) * step).toFixed(1);
  }
  follow();
  drawMarks();
}

/** Put the handles where the fields say, as far as the clip goes. */
function follow() {
  const [step, max] = [Number(end.step), Number(end.max)];
  start.value = Math.min(Number(from.value), max - step);
  end.value = Math.max(to.value === "" ? max : Number(to.value), Number(start.value) + step);
  show();
}

function show() {
  const max = Number(end.max);
  for (const handle of [start, end]) {
    handle.ariaValueText = formatClock(Number(handle.value));
    document.getElementById(`${handle.id}-time`).textContent = handle.ariaValueText;
    clip.style.setProperty(`--${handle.id}`, Number(handle.value) / max);
  }
  clip.classList.toggle("is-late", Number(start.value) > max / 2); // whichever handle has room must lie on top
  clip.classList.toggle("is-part", from.value !== "" || to.value !== "");
}

/** A handle was moved: keep the end after the start, tell the field, and show the moment. */
function take(handle) {
  const [step, max] = [Number(end.step), Number(end.max)];
  if (handle === start) start.value = Math.min(Number(start.value), Number(end.value) - step);
  else end.value = Math.max(Number(end.value), Number(start.value) + step);
  const seconds = Number(handle.value);
  const isOuter = handle === start ? seconds === 0 : seconds === max;
  write(handle === start ? from : to, isOuter ? "" : String(seconds));
  show();
  player.pause();
  player.currentTime = Math.min(seconds, player.duration);
}

function write(field, text) {
  if (field.value === text) return;
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true })); // for whoever follows the form: the estimate, the errors
}

// Marks

const frames = () => [...strips.querySelectorAll(".strip:not([hidden]) .frame")];

function drawMarks() {
  const max = Number(end.max);
  marks.replaceChildren(
    ...frames().map((frame) => {
      const mark = document.createElement("i");
      mark.style.setProperty("--at", Math.min(1, Number(frame.dataset.seconds) / max));
      return mark;
    }),
  );
  markCurrent();
}

function markCurrent() {
  const current = frames().findIndex((frame) => frame.ariaCurrent === "true");
  [...marks.children].forEach((mark, i) => mark.classList.toggle("is-current", i === current));
}

/** Where the track was clicked: the mark that lies there, else the moment. */
function secondsAt(x) {
  const { left, width } = marks.getBoundingClientRect();
  const secondsPerPixel = Number(end.max) / width;
  const clicked = Math.max(0, x - left) * secondsPerPixel;
  const distance = (seconds) => Math.abs(seconds - clicked);
  const nearest = frames().map((frame) => Number(frame.dataset.seconds)).sort((a, b) => distance(a) - distance(b))[0];
  return distance(nearest) < 6 * secondsPerPixel ? nearest : clicked;
}

track.addEventListener("click", (event) => {
  if (event.target !== start && event.target !== end) seek(secondsAt(event.clientX), currentMedia().id);
});
document.addEventListener("strip:change", drawMarks);
player.addEventListener("timeupdate", markCurrent);

// What changes the part

for (const handle of [start, end]) handle.addEventListener("input", () => take(handle));
for (const field of [from, to]) field.addEventListener("input", follow);
for (const name of ["durationchange", "emptied"]) player.addEventListener(name, measure);
document.addEventListener("media:change", ({ detail }) => {
  if (shownId) parts.set(shownId, [from.value, to.value]);
  const kept = parts.get(detail?.id);
  if (kept || shownId) {
    [from.value, to.value] = kept ?? ["", ""];
    clearErrors([from.name, to.name]);
  }
  shownId = detail?.id ?? null;
  follow();
});
register({
  wholeClip() {
    start.focus(); // the button goes
    for (const field of [from, to]) write(field, "");
  },
});
measure();
