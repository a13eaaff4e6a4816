// The conversation: sends the form, follows the answers' event streams, and carries out the page's buttons.
// htmx does the requests and swaps (see templates/); this file only joins them together.

import { register } from "./actions.js";
import "./clip.js";
import "./drop.js";
import { clearErrors, fieldOf, markField, showError } from "./field_errors.js";
import "./estimate.js";
import "./files.js";
import "./links.js";
import { hold, release } from "./held_question.js";
import { refresh } from "./library.js";
import { clear, currentMedia, hideLinkField, seek, select, showLinkField, showStrip } from "./player.js";

const form = document.getElementById("ask");
const prompt = document.getElementById("prompt");
const pending = document.getElementById("pending");
const answers = document.getElementById("answers");
const streams = new Map(); // URL -> EventSource, so that Stop can close one before or after it has opened

let asked = null; // the media of the question that is being sent
let hadFocusOnStop = false; // so that the keyboard's place is not lost when the button goes

const template = (id) => document.getElementById(id).content.cloneNode(true);
const runningCard = () => answers.querySelector('[data-state="running"]');
const isBusy = () => pending.hasChildNodes() || Boolean(runningCard());

function showBusy() {
  document.getElementById("ask-button").setAttribute("aria-disabled", String(isBusy()));
  document.body.classList.toggle("has-answers", pending.hasChildNodes() || answers.hasChildNodes());
}

// What is sent

/** The first thing that is missing or wrong, as [field, message]. */
function findFault() {
  const media = currentMedia();
  if (!media) return ["video", "Choose a video or picture first, or paste a link to one."];
  if (media.upload?.state === "refused") return ["video", "The server does not take this file; choose another one."]; // its row says why
  if (media.upload?.state === "broken") return ["video", "The upload broke off. Retry it under “Your videos”, then ask."];
  if (!prompt.value.trim()) return ["prompt", "What would you like to know? Type a question, or choose one below."];
  const wrong = [...form.elements].find((field) => field.name && !field.checkValidity());
  return wrong && [wrong.name, wrong.validationMessage];
}

form.addEventListener("htmx:confirm", (event) => {
  const upload = currentMedia()?.upload;
  if (!upload || upload.isFinal || isBusy() || findFault()) return;
  event.preventDefault();
  showPending();
  const { id } = asked;
  hold(upload, showProgress, () => {
    pending.replaceChildren();
    select(id);
    event.detail.issueRequest(true);
  });
});
form.addEventListener("htmx:configRequest", (event) => {
  if (isBusy()) return event.preventDefault();
  clearErrors(["video", ...[...form.elements].map((field) => field.name).filter(Boolean)]);
  const fault = findFault();
  if (fault) {
    showError(...fault);
    return event.preventDefault();
  }
  const data = event.detail.parameters;
  const { chat, videoId } = currentMedia();
  if (chat) data.chat = chat; // the next turn
  if (videoId) {
    data.video_id = videoId;
    delete data.video_url;
  }
  for (const [name, value] of Object.entries(data)) if (value === "") delete data[name];
});
form.addEventListener("input", (event) => event.target.name && clearErrors([event.target.name]));
document.addEventListener("media:change", (event) => {
  clearErrors(["video", "video_url"]);
  for (const button of document.querySelectorAll(".sample")) {
    button.setAttribute("aria-pressed", String(event.detail?.name === button.dataset.name));
  }
});

// Sending: a card stands in from the click on, and gives way to the server's

form.addEventListener("htmx:beforeRequest", showPending);

function showPending() {
  asked = currentMedia();
  hideLinkField();
  pending.replaceChildren(template("pending-card"));
  const card = pending.querySelector(".answer");
  card.querySelector(".question").textContent = prompt.value.trim();
  bind(card);
  showBusy();
  card.scrollIntoView({ block: "nearest" });
}

function showProgress(label, share) {
  pending.querySelector(".stage-label").textContent = label;
  pending.querySelector(".upload").value = share;
}

document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.requestConfig.elt === form) pending.replaceChildren();
  if (!event.detail.isError) return;
  const type = event.detail.xhr.getResponseHeader("Content-Type") ?? "";
  if (!type.startsWith("text/html")) event.detail.serverResponse = escapeHtml(messageOf(event.detail.xhr));
});
document.addEventListener("htmx:afterSwap", ({ target }) => {
  if (target === answers) {
    const card = answers.firstElementChild;
    bind(card);
    if (asked && !asked.videoId) refresh(); // what a link led to is kept now
    if (asked) Object.assign(asked, { chat: card.dataset.chat, videoId: card.dataset.videoId });
    history.replaceState(null, "", `?chat=${card.dataset.chat}`);
  }
  if (target.id === "strips") showStrip(target.querySelector(".strip")?.dataset.token);
  if (target.matches(".field-error, .form-error")) markField(target.dataset.field);
  showBusy();
});
for (const [name, message] of [
  ["htmx:sendError", "The server could not be reached, or it broke the connection. Is it running?"],
  ["htmx:timeout", "The server took too long to accept the question."],
  ["htmx:sendAbort", "The question was taken back."],
]) {
  form.addEventListener(name, () => {
    pending.replaceChildren();
    showError("", message);
    showBusy();
  });
}

/** Tie a card to the clip that was asked about. */
function bind(card) {
  card.dataset.media = asked?.id ?? "";
  card.querySelector(".about").textContent = asked?.name ?? "";
}

function messageOf(xhr) {
  try {
    return JSON.parse(xhr.responseText).error.message;
  } catch {
    return `The server answered with status ${xhr.status}.`;
  }
}

function escapeHtml(text) {
  const element = document.createElement("span");
  element.textContent = text;
  return element.innerHTML;
}

// Answers: one event stream each

htmx.createEventSource = (url) => {
  const stream = new EventSource(url);
  streams.set(url, stream);
  return stream;
};
document.addEventListener("htmx:sseBeforeMessage", () => {
  hadFocusOnStop = document.activeElement?.id === "stop";
});
answers.addEventListener("htmx:sseClose", ({ target }) => {
  const failure = target.querySelector(".failure");
  if (failure?.dataset.field) fieldOf(failure.dataset.field)?.setAttribute("aria-invalid", "true");
  if (failure?.dataset.field === "video_url") showLinkField();
  finish(target, failure ? "failed" : "done");
});
answers.addEventListener("htmx:sseError", ({ target }) => {
  if (target.dataset.state === "running") end(target, "failed", template("lost-end"));
});

/** End an answer from this side: close its stream, keep its text, and say why in its last line. */
function end(card, state, lastLine) {
  hadFocusOnStop = document.activeElement?.id === "stop";
  streams.get(card.getAttribute("sse-connect"))?.close();
  card.querySelector(".answer-end").replaceChildren(lastLine);
  finish(card, state);
}

function finish(card, state) {
  streams.delete(card.getAttribute("sse-connect"));
  card.dataset.state = state;
  card.querySelector(".answer-text").setAttribute("aria-busy", "false");
  if (hadFocusOnStop) card.querySelector(".card-actions :is(.copy, .again)")?.focus();
  hadFocusOnStop = false;
  showBusy();
}

function stop() {
  const card = runningCard();
  if (card) end(card, "stopped", template("stopped-end"));
  else if (release()) {
    pending.replaceChildren();
    showError("", "The question was taken back; its file is still being uploaded.");
    showBusy();
  } else if (pending.hasChildNodes()) htmx.trigger(form, "htmx:abort");
}

// Buttons

const cardOf = (element) => element.closest(".answer");

register({
  stop,
  remove: clear,
  suggest(button) {
    prompt.value = button.textContent.trim();
    clearErrors(["prompt"]);
    prompt.focus();
  },
  seek(element, event) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // the link, in a window of its own
    event.preventDefault();
    const card = cardOf(element);
    const token = card?.dataset.token ?? element.closest(".strip").dataset.token;
    const media = document.getElementById(`answer-${token}`)?.dataset.media;
    select(media);
    showStrip(token);
    seek(Number(element.dataset.seconds), media);
  },
  async renameChat(button) {
    const row = button.closest(".past-chat");
    const link = row.querySelector("a");
    const title = window.prompt("Another title", link.textContent)?.trim();
    if (title && (await change(row, "PATCH", { title }))) link.textContent = title;
  },
  async deleteChat(button) {
    const row = button.closest(".past-chat");
    if (!window.confirm(`Delete “${row.querySelector("a").textContent}”? Its video stays.`)) return;
    if (!(await change(row, "DELETE"))) return;
    if (new URLSearchParams(location.search).get("chat") === row.dataset.chat) location.assign("./");
    row.remove();
  },
  async copy(button) {
    await copyText(sourceOf(cardOf(button)));
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1600);
  },
  again(button) {
    const card = cardOf(button);
    select(card.dataset.media);
    prompt.value = card.querySelector(".question").textContent;
    form.requestSubmit();
  },
});

/** The answer as the model wrote it, in Markdown. */
function sourceOf(card) {
  return [...card.querySelectorAll(".block")].map((block) => block.dataset.source).join("").trim();
}

async function change(row, method, body) {
  const response = await fetch(`v1/chats/${row.dataset.chat}`, {
    method,
    headers: body && { "Content-Type": "application/json" },
    body: body && JSON.stringify(body),
  });
  return response.ok;
}

async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"); // plain http from another machine has no clipboard API
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

const isOfForm = (element) => form.contains(element) || element.form === form; // the link's field stands outside

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && isOfForm(event.target)) form.requestSubmit();
  if (event.key === "Escape" && !document.fullscreenElement) stop();
});

if (navigator.platform.startsWith("Mac")) document.querySelector(".keys kbd").textContent = "⌘";

showBusy();
