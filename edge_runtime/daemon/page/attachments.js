// Pictures and clips that go with the next question: from the picker, dropped, pasted, or a camera.

import { byId, element } from "./dom.js";
import { bytes } from "./format.js";

// Kinds that browsers do not name.
const BY_ENDING = { mkv: "video/x-matroska", avi: "video/x-msvideo", heic: "image/heic", heif: "image/heif", avif: "image/avif", tif: "image/tiff", tiff: "image/tiff" };

// { kind: "image" | "video", name, size in bytes or null, url for the API, file or null }
let attached = [];
const changed = new Set();

export const current = () => attached;
export const onChange = (call) => changed.add(call);

export function replace(items) {
  attached = items;
  draw();
}

export async function addFiles(files) {
  const refused = [];
  for (const file of files) {
    const type = file.type || BY_ENDING[file.name.split(".").pop().toLowerCase()] || "";
    const kind = type.split("/")[0];
    if (kind !== "image" && kind !== "video") refused.push(`${file.name} is ${type || "of no known kind"}`);
    else attached = [...attached, { kind, name: file.name, size: file.size, url: await dataUri(file, type), file }];
  }
  notice(refused.length ? `${refused.join("; ")}: neither a picture nor a clip. Choose an image or a video file.` : "");
  draw();
}

export function addCamera(name) {
  attached = [...attached, { kind: "video", name: `camera ${name}`, size: null, url: `camera:${name}`, file: null }];
  draw();
}

export function part(item) {
  const type = `${item.kind}_url`;
  return { type, [type]: { url: item.url } };
}

// A picture as it is shown small; a clip shows its first frame.
export function thumbnail(item) {
  if (item.file === null) return element("span", { className: "thumb glyph", textContent: "◉" });
  item.preview ??= URL.createObjectURL(item.file);
  const broken = (event) => event.target.replaceWith(element("span", { className: "thumb glyph", textContent: "?" }));
  const made =
    item.kind === "image"
      ? element("img", { alt: item.name })
      : element("video", { muted: true, preload: "auto", "aria-label": item.name });
  made.className = "thumb";
  made.addEventListener("error", broken);
  made.src = item.preview;
  return made;
}

export function release(items) {
  for (const item of items) if (item.preview) URL.revokeObjectURL(item.preview);
}

export function listen(target) {
  byId("files").addEventListener("change", async (event) => {
    await addFiles([...event.target.files]);
    event.target.value = "";
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    addFiles(files);
  });
  // The whole page takes drops: a near miss must not make the browser leave it for the picture.
  let depth = 0;
  const mark = (by) => {
    depth = by === null ? 0 : Math.max(0, depth + by);
    target.classList.toggle("dropping", depth > 0);
  };
  document.addEventListener("dragenter", () => mark(1));
  document.addEventListener("dragleave", () => mark(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(null);
    addFiles([...event.dataTransfer.files]);
  });
}

export function notice(text) {
  const place = byId("notice");
  place.textContent = text;
  place.hidden = !text;
}

function dataUri(file, type) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(`data:${type};${reader.result.slice(reader.result.indexOf("base64,"))}`);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function draw() {
  const tray = byId("tray");
  tray.hidden = attached.length === 0;
  tray.replaceChildren(...attached.map(row));
  for (const call of changed) call();
}

function row(item) {
  const remove = element("button", { type: "button", className: "remove", textContent: "×", "aria-label": `Remove ${item.name}` });
  remove.addEventListener("click", () => {
    notice("");
    replace(attached.filter((other) => other !== item));
    byId("question").focus();
  });
  const size = item.size === null ? "live" : bytes(item.size);
  const words = element("span", {}, element("b", { textContent: item.name }), element("small", { textContent: size }));
  return element("li", {}, thumbnail(item), words, remove);
}
