// A file on its way to the server's library, by the tus protocol: how far it is, how fast, and what became of it.
// What breaks off goes on where it was, also after the page was reloaded. It knows nothing of the page.

const RETRY_DELAYS_MS = [0, 1000, 3000, 6000];
const MAX_AT_ONCE = 2;
const SPEED_SPAN_MS = 4000;
const PASSING = [408, 409, 423, 429]; // too slow, or two at once, or too many: to try again may help
const FULL = 507; // the library's quota: it does not

const waiting = [];
let numSending = 0;

/**
 * Dispatches "change". `state` is waiting, sending, checking (the server has it all and looks into it), retrying,
 * broken (start it again), done, refused or cancelled; the last three are final.
 */
export class Upload extends EventTarget {
  state = "waiting";
  sent = 0;
  videoId = null;
  message = "";
  #tus = null;
  #hasPlace = false;
  #marks = []; // [time in ms, bytes sent], of the last seconds

  #resolveEnd;

  /** `fault` says why a file is not even sent. */
  constructor(file, fault = "") {
    super();
    this.file = file;
    this.ended = new Promise((resolve) => (this.#resolveEnd = resolve));
    if (fault) this.#end("refused", fault);
    else this.start();
  }

  get isFinal() {
    return ["done", "refused", "cancelled"].includes(this.state);
  }

  get share() {
    return this.file.size ? this.sent / this.file.size : 0;
  }

  /** Bytes per second, of late; 0 as long as it is not known. */
  get speed() {
    const [first, last] = [this.#marks.at(0), this.#marks.at(-1)];
    return first && last[0] > first[0] ? ((last[1] - first[1]) * 1000) / (last[0] - first[0]) : 0;
  }

  get secondsLeft() {
    return this.speed ? (this.file.size - this.sent) / this.speed : Infinity;
  }

  /** Begin, or go on after it broke. */
  start() {
    if (this.isFinal || waiting.includes(this)) return;
    this.#set("waiting");
    waiting.push(this);
    next();
  }

  /** End it, and remove what the server has of it. */
  cancel() {
    if (this.isFinal) return;
    this.#tus?.abort(true).catch(() => {}); // the server forgets it by itself, later
    this.#end("cancelled");
  }

  async send() {
    this.#hasPlace = true;
    this.#marks = [];
    this.#set("sending");
    if (!this.#tus) {
      this.#tus = this.#create();
      const [earlier] = await this.#tus.findPreviousUploads();
      if (earlier) this.#tus.resumeFromPreviousUpload(earlier);
    }
    if (!this.isFinal) this.#tus.start();
  }

  #create() {
    return new tus.Upload(this.file, {
      endpoint: new URL("v1/uploads", document.baseURI).href,
      metadata: { filename: this.file.name },
      retryDelays: RETRY_DELAYS_MS,
      removeFingerprintOnSuccess: true,
      onUploadUrlAvailable: () => {
        const id = this.#tus.url.split("/").pop(); // beside the page, also behind a proxy that adds a prefix
        this.#tus.url = new URL(`v1/uploads/${id}`, document.baseURI).href;
      },
      onProgress: (sent) => this.#progress(sent),
      onShouldRetry: (error) => {
        const may = navigator.onLine && !isRefusal(error.originalResponse);
        if (may) this.#set("retrying");
        return may;
      },
      onAfterResponse: (_, response) => {
        this.videoId = response.getHeader("Video-Id") ?? this.videoId;
      },
      onSuccess: () => this.#end("done"),
      onError: (error) => this.#fail(error.originalResponse),
    });
  }

  #progress(sent) {
    const now = performance.now();
    this.sent = sent;
    this.#marks = [...this.#marks.filter(([time]) => now - time < SPEED_SPAN_MS), [now, sent]];
    this.#set(sent < this.file.size ? "sending" : "checking");
  }

  #fail(response) {
    if (isRefusal(response)) return this.#end("refused", messageOf(response));
    this.#set("broken");
    this.#leave();
  }

  #end(state, message = "") {
    this.message = message;
    this.#set(state);
    if (waiting.includes(this)) waiting.splice(waiting.indexOf(this), 1);
    this.#leave();
    this.#resolveEnd(state);
  }

  #leave() {
    if (this.#hasPlace) numSending -= 1;
    this.#hasPlace = false;
    next();
  }

  #set(state) {
    if (this.isFinal) return;
    this.state = state;
    this.dispatchEvent(new Event("change"));
  }
}

function next() {
  while (numSending < MAX_AT_ONCE && waiting.length) {
    numSending += 1;
    waiting.shift().send();
  }
}

function isRefusal(response) {
  const status = response?.getStatus() ?? 0;
  return (status >= 400 && status < 500 && !PASSING.includes(status)) || status === FULL;
}

function messageOf(response) {
  try {
    return JSON.parse(response.getBody()).error.message;
  } catch {
    return `The server answered with status ${response.getStatus()}.`;
  }
}
