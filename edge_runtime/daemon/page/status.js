// The line at the top: which model answers, what encodes, and whether the server can be reached.

import { getJson } from "./api.js";
import { byId, element } from "./dom.js";
import { many } from "./format.js";

const EVERY = 10000; // milliseconds; each time the daemon asks its server
const SOON = 1000; // while it starts

// Id of the model, and the sizes that turn a grid into pixels; null until the daemon is ready.
let model = null;

export const currentModel = () => model;

export async function keepFresh(onReady) {
  const ready = await look(onReady);
  setTimeout(() => keepFresh(onReady), ready ? EVERY : SOON);
}

async function look(onReady) {
  try {
    const state = await getJson("/readyz");
    if (model === null) {
      model = (await getJson("/v1/models")).data[0];
      byId("model").textContent = model.id;
      document.title = `${model.id} · qwen3vl-edge`;
      onReady();
    }
    const sizes = `${many(state.buckets.length, "bucket")}${state.any_size ? " and any other size" : ""}`;
    pills([
      ["good", "Device ready", sizes],
      ["", `${state.backend} ${state.precision}`, "what encodes"],
      serverPill(state.server),
    ]);
    return true;
  } catch (error) {
    pills([error.status === 503 ? ["fair", "Starting", error.message] : ["bad", "Daemon not reachable", error.message]]);
    return false;
  }
}

function serverPill(state) {
  if (state === "ready") return ["good", "Server ready", ""];
  return ["bad", state.startsWith("ready") ? "Server will not answer" : "Server not reachable", state];
}

function pills(states) {
  const text = JSON.stringify(states);
  if (byId("status").dataset.shown === text) return; // nothing new to read out
  byId("status").dataset.shown = text;
  byId("status").replaceChildren(
    ...states.map(([tone, words, more]) => element("li", { className: `pill ${tone}`, textContent: words, title: more })),
  );
}
