// The stage: which video or picture is shown, and where it stands. It knows no answers.

import { formatBytes } from "./format.js";

const panel = document.getElementById("media");
const linkInput = document.getElementById("video_url");
const player = document.getElementById("player");
const picture = document.getElementById("picture");
const linkedFrame = document.getElementById("linked-frame");
const linkNote = document.getElementById("linked-note");
const linkNoteAtFirst = linkNote.textContent;
const noPreview = document.getElementById("no-preview");
const noPreviewAtFirst = noPreview.textContent;
const strips = document.getElementById("strips");

// id -> { id, kind: "video" | "picture" | "link", name, size, url; upload: of a file; videoId: once the server keeps it }
const items = new Map();
let current = null;

export const currentMedia = () => current;

/** Show a file of this computer, which `upload` takes to the server. */
export function chooseFile(file, upload) {
  const kind = file.type.startsWith("image/") ? "picture" : "video";
  const item = remember({ kind, name: file.name, size: file.size, url: URL.createObjectURL(file), upload });
  show(item);
  upload.ended.then((state) => {
    item.videoId = upload.videoId;
    if (item !== current) return;
    describeFault();
    if (state === "cancelled") clear();
    else document.dispatchEvent(new CustomEvent("media:arrived"));
  });
}

export function chooseLink(url) {
  show(remember({ kind: "link", name: nameOf(url), url }));
}

/** Show a video that the server keeps. */
export function chooseKept(item) {
  show(remember(item));
}

/** What is being done about the link on the stage. */
export function describeLink(text) {
  linkNote.textContent = text;
}

export function select(id) {
  if (items.has(id) && current?.id !== id) show(items.get(id));
}

export function clear() {
  show(null);
}

/** Show the moment `seconds` of the media `id`, which need not be the one on the stage. */
export function seek(seconds, id) {
  select(id);
  hideLinkField();
  if (current?.kind === "video") {
    player.pause();
    player.currentTime = Math.min(seconds, player.duration || seconds);
    if (!player.readyState) player.addEventListener("loadedmetadata", () => (player.currentTime = seconds), { once: true });
  }
  markFrame(seconds);
  panel.scrollIntoView({ block: "nearest" });
}

/** The link field gives its place to the frames once its link was asked about. */
export const hideLinkField = () => panel.classList.add("asked");
export const showLinkField = () => panel.classList.remove("asked");

/** Show the frames of one answer, and those of no other. */
export function showStrip(token) {
  for (const strip of strips.querySelectorAll(".strip")) strip.hidden = strip.dataset.token !== token;
  strips.classList.toggle("has-strip", Boolean(strips.querySelector(".strip:not([hidden])")));
  markFrame(player.currentTime || 0);
  document.dispatchEvent(new CustomEvent("strip:change"));
}

function remember(item) {
  const isSame = (other) => (item.videoId && other.videoId === item.videoId) || other.url === item.url;
  const known = [...items.values()].find(isSame);
  if (known) return known;
  const kept = { ...item, id: String(items.size + 1) };
  items.set(kept.id, kept);
  return kept;
}

function show(item) {
  current = item;
  panel.dataset.state = item?.kind ?? "empty";
  panel.classList.remove("unplayable", "asked");
  panel.scrollTop = 0;
  if (item?.kind !== "link") linkInput.value = "";
  else if (linkInput.value !== item.url) linkInput.value = item.url;
  setSource(player, item?.kind === "video" ? item.url : null);
  setSource(picture, item?.kind === "picture" ? item.url : null);
  linkedFrame.hidden = true;
  document.getElementById("linked-host").textContent = item?.kind === "link" ? (parse(item.url)?.host ?? "") : "";
  describeLink(linkNoteAtFirst);
  document.getElementById("media-name").textContent = item?.name ?? "";
  describe();
  describeFault();
  showStrip("");
  document.dispatchEvent(new CustomEvent("media:change", { detail: item }));
}

function setSource(element, url) {
  if (element.getAttribute("src") === url) return;
  if (url) element.src = url;
  else {
    element.removeAttribute("src");
    element.load?.();
  }
}

function describe() {
  const facts = [];
  if (current?.size) facts.push(formatBytes(current.size));
  if (current?.kind === "video" && player.duration && isFinite(player.duration)) {
    facts.push(`${player.duration.toFixed(1)} s`, `${player.videoWidth} × ${player.videoHeight}`);
  }
  document.getElementById("media-detail").textContent = facts.join(" · ");
}

/** Why there may be nothing to see. */
function describeFault() {
  const isRefused = current?.upload?.state === "refused";
  noPreview.textContent = isRefused ? "The server does not take this file." : noPreviewAtFirst;
}

/** Mark the frame that the model saw at or just before a time; where nothing plays, show it. */
function markFrame(seconds) {
  const buttons = [...strips.querySelectorAll(".strip:not([hidden]) .frame")];
  if (!buttons.length) return;
  const index = Math.max(0, buttons.findLastIndex((button) => Number(button.dataset.seconds) <= seconds + 0.05));
  buttons.forEach((button, i) => {
    button.ariaCurrent = i === index ? "true" : null;
    button.tabIndex = i === index ? 0 : -1; // one stop for Tab; the arrow keys do the rest
  });
  keepInView(buttons[index]);
  if (current?.kind === "link") {
    linkedFrame.src = buttons[index].querySelector("img").src;
    linkedFrame.hidden = false;
  }
}

function keepInView(button) {
  const list = button.closest(".frames");
  const left = button.offsetLeft - list.offsetLeft;
  if (left < list.scrollLeft || left + button.offsetWidth > list.scrollLeft + list.clientWidth) {
    list.scrollLeft = left - list.clientWidth / 2 + button.offsetWidth / 2;
  }
}

const parse = (url) => (URL.canParse(url) ? new URL(url) : null);

function nameOf(url) {
  const parsed = parse(url);
  return parsed?.pathname.split("/").pop() || parsed?.host || url.slice(0, 40);
}

linkInput.addEventListener("input", () => {
  const url = linkInput.value.trim();
  if (url) chooseLink(url);
  else if (current?.kind === "link") clear();
});
strips.addEventListener("keydown", (event) => {
  const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
  const next = step && event.target.closest(".frame")?.[step];
  if (!next) return;
  event.preventDefault();
  next.focus();
  next.click();
});
player.addEventListener("loadedmetadata", describe);
player.addEventListener("timeupdate", () => markFrame(player.currentTime));
for (const element of [player, picture]) {
  element.addEventListener("error", () => element.getAttribute("src") && panel.classList.add("unplayable"));
}
