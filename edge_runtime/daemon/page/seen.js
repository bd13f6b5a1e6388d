// What the model saw of each picture: at its bucket's size, cut into the cells that become tokens.

import { byId, element } from "./dom.js";
import { grid, many, percent } from "./format.js";

const LONG_SIDE = 960; // of the drawing, in pixels of the canvas

// `media` is the daemon's evidence, `items` the attachments it came from, in the same order.
export async function showSeen(media, items, sizes) {
  const place = byId("seen");
  if (!media.length) {
    place.className = "empty";
    place.replaceChildren("No picture in this question.");
    return;
  }
  const figures = await Promise.all(media.map((item, index) => figure(item, items[index], sizes)));
  place.className = media.length > 1 ? "several" : "";
  place.replaceChildren(...figures);
}

async function figure(item, attachment, { patch_size: patch, merge_size: merge }) {
  const seen = grid(item.grid);
  const native = grid(item.native);
  const picture = await frame(attachment, item);
  const canvas = element("canvas", { role: "img" });
  const cell = patch * merge;
  const draw = () => paint(canvas, picture, seen, native, patch, merge);
  draw();
  byId("show-grid").addEventListener("change", () => canvas.isConnected && draw());
  const [rows, columns] = [seen.h / merge, seen.w / merge];
  const clip = seen.t > 1 ? `${seen.t} × ` : "";
  canvas.setAttribute("aria-label", `${attachment?.name ?? item.kind} in ${rows} rows and ${columns} columns of tokens`);
  const facts = [
    ["Tokens", `${clip}${rows} × ${columns} = ${seen.t * rows * columns}, each ${cell} × ${cell} px`],
    ["Seen at", `${seen.w * patch} × ${seen.h * patch} px (grid ${item.grid})`],
    ["Native", item.native === item.grid ? "the same" : `${native.w * patch} × ${native.h * patch} px (grid ${item.native})`],
    ...(item.frame ? [["Frame", item.frame]] : []),
    ["Served by", `${servedBy(item)}, ${item.backend} ${item.precision}`],
  ];
  return element(
    "figure",
    {},
    canvas,
    element(
      "figcaption",
      {},
      element("b", { textContent: attachment?.name ?? item.kind }),
      element("p", { textContent: inWords(item, seen, picture) }),
      element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })])),
    ),
  );
}

export function servedBy(item) {
  const graph = item.fixed ? "fixed bucket" : "dynamic graph";
  return item.cached ? `cache (${graph})` : graph;
}

function inWords(item, seen, picture) {
  const clip = seen.t > 1 ? ` ${many(seen.t, "step")} in time; the first is shown.` : "";
  const blind = picture === null ? " This browser cannot show it." : "";
  if (item.native === item.grid) return `Seen as the unsplit model sees it: the bucket is the native size.${clip}${blind}`;
  const scale = item.scale < 1 ? `shrunk to ${percent(item.scale)}` : `enlarged to ${percent(item.scale)}`;
  const size = Math.abs(item.scale - 1) < 0.005 ? "kept at its scale" : scale;
  const shape = item.distortion < 0.0005 ? "undistorted" : `its aspect changed by ${percent(item.distortion)}`;
  return `Fitted to a bucket: ${size}, ${shape}. Dashed: the native cells.${clip}${blind}`;
}

// The picture, or the first frame of a clip; null where this browser cannot read it.
async function frame(attachment, item) {
  if (!attachment?.file) return null;
  try {
    if (attachment.kind === "video") return await firstFrame(attachment.file);
    const turned = !item.orientation?.endsWith("not applied");
    return await createImageBitmap(turned ? attachment.file : await withoutExif(attachment.file));
  } catch {
    return null;
  }
}

// A browser turns pictures by their EXIF tag, as the device does by default. Without the tag it cannot.
async function withoutExif(file) {
  const bytes = new DataView(await file.arrayBuffer());
  if (bytes.byteLength < 4 || bytes.getUint16(0) !== 0xffd8) return file; // no JPEG
  const kept = [file.slice(0, 2)];
  let at = 2;
  // Segments with a length, up to the start of the scan.
  while (at + 4 <= bytes.byteLength && bytes.getUint8(at) === 0xff && bytes.getUint8(at + 1) !== 0xda) {
    const end = at + 2 + bytes.getUint16(at + 2);
    if (bytes.getUint8(at + 1) !== 0xe1) kept.push(file.slice(at, end));
    at = end;
  }
  return new Blob([...kept, file.slice(at)], { type: file.type });
}

function firstFrame(file) {
  const video = element("video", { muted: true, preload: "auto" });
  const url = URL.createObjectURL(file);
  return new Promise((resolve, reject) => {
    video.onloadeddata = () => createImageBitmap(video).then(resolve, reject);
    video.onerror = () => reject(video.error);
    video.src = url;
  }).finally(() => URL.revokeObjectURL(url));
}

function paint(canvas, picture, seen, native, patch, merge) {
  const [width, height] = [seen.w * patch, seen.h * patch];
  const zoom = Math.max(1, Math.round(LONG_SIDE / Math.max(width, height)));
  canvas.width = width * zoom;
  canvas.height = height * zoom;
  const pen = canvas.getContext("2d");
  pen.fillStyle = picture ? "#fff" : "#8888"; // what is transparent is white to the model
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (picture) {
    // First at the bucket's own size: no more detail is shown than the model was given.
    const small = element("canvas", { width, height });
    const at = small.getContext("2d");
    at.imageSmoothingQuality = "high";
    at.fillStyle = "#fff";
    at.fillRect(0, 0, width, height);
    at.drawImage(picture, 0, 0, width, height);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  }
  if (!byId("show-grid").checked) return;
  lines(pen, canvas, seen.h / merge, seen.w / merge, []);
  if (native.h !== seen.h || native.w !== seen.w) lines(pen, canvas, native.h / merge, native.w / merge, [9, 7]);
}

// Dark under light, so that the lines show on any picture.
function lines(pen, canvas, rows, columns, dash) {
  const path = new Path2D();
  for (let row = 1; row < rows; row += 1) {
    path.moveTo(0, (row * canvas.height) / rows);
    path.lineTo(canvas.width, (row * canvas.height) / rows);
  }
  for (let column = 1; column < columns; column += 1) {
    path.moveTo((column * canvas.width) / columns, 0);
    path.lineTo((column * canvas.width) / columns, canvas.height);
  }
  const thin = Math.max(1, Math.max(canvas.width, canvas.height) / 500);
  pen.setLineDash(dash.map((length) => length * thin));
  for (const [width, colour] of [[3 * thin, dash.length ? "#000b" : "#0007"], [1.2 * thin, dash.length ? "#fbbf24" : "#fff"]]) {
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.stroke(path);
  }
}
