// The table of the last requests, from whichever client they came.

import { getJson } from "./api.js";
import { byId, element } from "./dom.js";
import { bytes, seconds } from "./format.js";
import { servedBy } from "./seen.js";

const EVERY = 2000; // milliseconds
let shown = "";

export async function refresh() {
  let rows;
  try {
    rows = (await getJson("/v1/requests/recent")).data;
  } catch {
    return; // the status line says that the daemon is away
  }
  const now = JSON.stringify(rows);
  if (now === shown) return;
  shown = now;
  const body = byId("rows").querySelector("tbody");
  body.replaceChildren(...rows.map(row));
  if (!rows.length) body.append(element("tr", {}, element("td", { colSpan: 11, className: "quiet", textContent: "None yet." })));
}

export function keepFresh() {
  refresh();
  setInterval(() => document.visibilityState === "visible" && refresh(), EVERY);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && refresh());
}

function row(request) {
  const spent = request.seconds;
  const time = (name) => (spent[name] ? seconds(spent[name]) : "–");
  const cells = [
    [new Date(request.time * 1000).toLocaleTimeString([], { hour12: false }), ""],
    [`${request.id?.slice(0, 8) ?? "–"} ${request.endpoint}`, "wide mono"],
    [media(request.media), "mono"],
    [request.usage?.prompt_tokens ?? "–", "n wide"],
    [request.usage?.completion_tokens ?? "–", "n"],
    [time("preprocess"), "n wide"],
    [request.media.length ? time("encode") : "–", "n wide"],
    [time("first_token"), "n wide"],
    [time("total"), "n"],
    [request.sent_bytes ? bytes(request.sent_bytes) : "–", "n"],
  ];
  const status = element("span", { className: `pill ${tone(request)}`, textContent: request.error ?? "ok", title: `HTTP ${request.status}` });
  return element(
    "tr",
    {},
    ...cells.map(([text, className]) => element("td", { className, textContent: text })),
    element("td", {}, status),
  );
}

function media(items) {
  if (!items.length) return "–";
  const counted = new Map();
  for (const item of items) {
    const text = `${item.grid} ${item.cached ? "cache" : servedBy(item).split(" ")[0]}`;
    counted.set(text, (counted.get(text) ?? 0) + 1);
  }
  return [...counted].map(([text, count]) => (count > 1 ? `${count}·${text}` : text)).join(", ");
}

function tone(request) {
  if (request.error === null) return "good";
  return request.status === 499 || request.status === 429 ? "fair" : "bad";
}
