// The conversation: asks, shows the answer as it comes, and what was behind it.

import * as attachments from "./attachments.js";
import { Refused, streamChat } from "./api.js";
import * as camera from "./camera.js";
import { showBytes, showTimes } from "./costs.js";
import { byId, element } from "./dom.js";
import { bytes, grid, many, seconds } from "./format.js";
import * as recent from "./recent.js";
import { showSeen } from "./seen.js";
import * as status from "./status.js";

const log = byId("log");
const question = byId("question");
const welcome = byId("welcome");

let messages = []; // as the API takes them
let items = []; // attachments of all messages, in their order
let asking = null; // AbortController of the answer under way

function refreshButtons() {
  const busy = asking !== null;
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  byId("send").disabled = busy || status.currentModel() === null || !question.value.trim();
  byId("new").disabled = busy || log.firstElementChild === welcome;
}

async function ask() {
  const text = question.value.trim();
  const added = attachments.current();
  if (!text || asking !== null || status.currentModel() === null) return;
  attachments.notice("");
  const message = { role: "user", content: [...added.map(attachments.part), { type: "text", text }] };
  const asked = showQuestion(text, added);
  const answer = showAnswer();
  question.value = "";
  attachments.replace([]);
  asking = new AbortController();
  refreshButtons();
  const wanted = [...items, ...added];
  const started = performance.now();
  try {
    const request = { model: status.currentModel().id, messages: [...messages, message], ...options() };
    const summary = await streamChat(request, asking.signal, answer.add);
    const total = (performance.now() - started) / 1000;
    keep(message, answer.text(), added);
    answer.end(summary.reason === "length" ? "cut off at the token limit" : "");
    answer.behind(summary, wanted, total);
  } catch (error) {
    if (error.name === "AbortError") {
      keep(message, answer.text(), added);
      answer.end("stopped");
    } else {
      // The question goes back to where it can be changed.
      answer.remove();
      asked.remove();
      showError(error, text, added);
    }
  }
  asking = null;
  refreshButtons();
  recent.refresh();
  question.focus({ preventScroll: true });
}

function options() {
  const parameters = {};
  if (byId("max-tokens").value) parameters.max_tokens = Number(byId("max-tokens").value);
  if (byId("temperature").value) parameters.temperature = Number(byId("temperature").value);
  return parameters;
}

function keep(message, text, added) {
  messages = [...messages, message, { role: "assistant", content: text }];
  items = [...items, ...added];
}

function showQuestion(text, added) {
  if (log.firstElementChild === welcome) log.replaceChildren();
  for (const old of log.querySelectorAll(".error")) old.remove();
  const pictures = added.length ? element("div", { className: "pictures" }, ...added.map(attachments.thumbnail)) : null;
  const made = element("article", { className: "asked" }, pictures, element("p", { textContent: text }));
  log.append(made);
  return made;
}

function showAnswer() {
  const words = element("p", { className: "words" });
  const note = element("small", { className: "quiet" });
  const made = element("article", { className: "answered waiting", "aria-busy": "true" }, words, note);
  const atEnd = () => (log.scrollTop = log.scrollHeight);
  log.append(made);
  atEnd();
  return {
    add(piece) {
      const following = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      made.classList.remove("waiting");
      words.append(piece);
      if (following) atEnd();
    },
    text: () => words.textContent,
    end(why) {
      made.classList.remove("waiting");
      made.removeAttribute("aria-busy");
      note.textContent = why;
    },
    behind({ evidence, usage }, wanted, total) {
      const tokens = visualTokens(evidence.media);
      const show = () => {
        for (const other of log.querySelectorAll(".behind")) other.setAttribute("aria-pressed", other === button);
        showSeen(evidence.media, wanted, status.currentModel());
        showTimes(evidence.seconds, usage, total);
        showBytes(evidence.sent_bytes, wanted, tokens);
      };
      const summary = [seconds(total), many(usage.completion_tokens, "token"), `${bytes(evidence.sent_bytes)} sent`];
      const button = element("button", { type: "button", className: "behind", textContent: summary.join(" · ") });
      button.title = "Show what was behind this answer";
      button.addEventListener("click", show);
      made.append(button);
      atEnd();
      show();
    },
    remove: () => made.remove(),
  };
}

function visualTokens(media) {
  const merge = status.currentModel().merge_size;
  return media.map((item) => grid(item.grid)).reduce((sum, { t, h, w }) => sum + (t * h * w) / merge ** 2, 0);
}

function showError(error, text, added) {
  question.value = question.value || text;
  attachments.replace([...added, ...attachments.current()]);
  // A data URI says nothing to a reader: the file's name does.
  const name = added.length === 1 ? added[0].name : "one of the files";
  const message = error.message.replace(/data:[\w.+-]+\/[\w.+-]+;base64,\S*/g, name);
  const refused = error instanceof Refused;
  const details = refused ? [error.field && `field ${error.field}`, error.code, error.status && `HTTP ${error.status}`] : [];
  const made = element(
    "article",
    { className: "error", role: "alert" },
    element("p", { textContent: message[0].toUpperCase() + message.slice(1) }),
    element("small", { textContent: details.filter(Boolean).join(" · ") }),
  );
  log.append(made);
  log.scrollTop = log.scrollHeight;
}

function startOver() {
  attachments.release(items);
  messages = [];
  items = [];
  log.replaceChildren(welcome);
  for (const id of ["seen", "times", "bytes"]) {
    byId(id).className = "empty";
    byId(id).replaceChildren("Nothing yet.");
  }
  refreshButtons();
  question.focus();
}

question.addEventListener("input", refreshButtons);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
});
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("stop").addEventListener("click", () => asking?.abort());
byId("new").addEventListener("click", startOver);
attachments.onChange(refreshButtons);
attachments.listen(byId("talk"));
camera.listen();
recent.keepFresh();
status.keepFresh(() => {
  refreshButtons();
  camera.offerDeviceCameras();
});
