// Where the time of an answer went, and what went over the network for it.

import { byId, element } from "./dom.js";
import { bytes, many, percent, seconds, times } from "./format.js";

// `total` is as the browser measured it, in seconds.
export function showTimes(spent, usage, total) {
  const place = byId("times");
  const answer = Math.max(0, spent.generate - spent.first_token);
  const known = spent.preprocess + spent.encode + spent.generate;
  const stages = [
    ["preprocess", "Preprocess", spent.preprocess, "resize, patches, token ids; on this device"],
    ["encode", "Encode", spent.encode, "the vision encoder, or the cache; on this device"],
    ["first", "First token", spent.first_token, "upload, queue and prefill; the server"],
    ["rest", "Further tokens", answer, rate(usage, answer)],
    ["other", "All else", Math.max(0, total - known), "reading the request, waiting its turn, this browser"],
  ];
  const whole = stages.reduce((sum, stage) => sum + stage[2], 0) || 1;
  const bar = element("div", { className: "stack", role: "img" });
  bar.setAttribute("aria-label", stages.map(([, name, value]) => `${name} ${seconds(value)}`).join(", "));
  const list = element("ul", { className: "legend" });
  for (const [key, name, value, what] of stages) {
    const piece = element("span", { className: key, title: `${name}: ${seconds(value)}` });
    piece.style.flexGrow = String(value / whole);
    bar.append(piece);
    list.append(
      element(
        "li",
        {},
        element("i", { className: key }),
        element("span", {}, name, element("small", { textContent: what })),
        element("b", { textContent: seconds(value) }),
        element("small", { className: "share", textContent: percent(value / whole) }),
      ),
    );
  }
  const sum = element("p", { className: "sum" }, element("b", { textContent: seconds(whole) }), " from question to last token");
  place.className = "";
  place.replaceChildren(sum, bar, list);
}

// Bytes of the request against the files that it was asked about.
export function showBytes(sent, items, tokens) {
  const place = byId("bytes");
  const sizes = items.map((item) => item.size);
  const known = sizes.length > 0 && sizes.every((size) => size !== null);
  const files = known ? sizes.reduce((sum, size) => sum + size, 0) : 0;
  place.className = "";
  const rows = [bar("Sent to the server", sent, Math.max(sent, files), "sent")];
  if (known) rows.push(bar(items.length > 1 ? `The ${items.length} files` : "The file", files, Math.max(sent, files), "file"));
  place.replaceChildren(...rows, element("p", { className: "quiet", textContent: verdict(sent, files, items, known, tokens) }));
}

function verdict(sent, files, items, known, tokens) {
  if (!items.length) return "No picture in this question: token ids alone.";
  const stays = items.length > 1 ? "The pictures themselves stayed here." : "The picture itself stayed here.";
  if (!known) return `Embeddings of ${many(tokens, "visual token")}. A camera has no file to compare with. ${stays}`;
  const ratio = sent / files;
  const compared =
    ratio >= 1
      ? `${times(ratio)} the size of the ${items.length > 1 ? "files" : "file"}: embeddings are larger than a well compressed picture.`
      : `${times(1 / ratio)} less than the ${items.length > 1 ? "files" : "file"}.`;
  return `${compared} ${many(tokens, "visual token")}. ${stays}`;
}

function bar(name, value, most, kind) {
  const filled = element("span", { className: `fill ${kind}` });
  filled.style.width = `${Math.max(0.4, (100 * value) / (most || 1))}%`;
  return element(
    "div",
    { className: "measure" },
    element("span", { textContent: name }),
    element("b", { textContent: bytes(value) }),
    element("div", { className: "track" }, filled),
  );
}

function rate(usage, answer) {
  const further = (usage?.completion_tokens ?? 0) - 1;
  return further > 0 && answer > 0 ? `${many(further, "token")}, ${(further / answer).toFixed(further / answer < 10 ? 1 : 0)} per second` : "none";
}
