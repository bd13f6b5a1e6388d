// A still from this browser's camera, and the daemon's own cameras where it has some.

import { addCamera, addFiles } from "./attachments.js";
import { getJson } from "./api.js";
import { byId, element } from "./dom.js";

const WHY = {
  NotAllowedError: "The browser may not use the camera. Allow it in the site's settings.",
  NotFoundError: "No camera was found.",
  NotReadableError: "The camera is in use by another program.",
};

export function listen() {
  const dialog = byId("camera-dialog");
  const video = dialog.querySelector("video");
  const take = dialog.querySelector(".take");
  const error = dialog.querySelector(".error");

  byId("camera").addEventListener("click", async () => {
    error.hidden = true;
    take.disabled = true;
    dialog.showModal();
    try {
      if (!navigator.mediaDevices) {
        throw new Error("Browsers lend the camera to https and to this machine's own address alone: open http://localhost.");
      }
      const stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
      if (!dialog.open) return end(stream);
      video.srcObject = stream;
      await video.play();
      take.disabled = false;
      take.focus();
    } catch (problem) {
      error.textContent = WHY[problem.name] ?? problem.message;
      error.hidden = false;
    }
  });
  take.addEventListener("click", async () => {
    const file = await still(video);
    dialog.close();
    await addFiles([file]);
    byId("question").focus();
  });
  dialog.querySelector(".cancel").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    if (video.srcObject) end(video.srcObject);
    video.srcObject = null;
  });
}

export async function offerDeviceCameras() {
  let cameras;
  try {
    cameras = (await getJson("/v1/cameras")).data;
  } catch {
    return; // the status line says that the daemon is away
  }
  const names = cameras.map((camera) => camera.id);
  const select = byId("device-cameras").querySelector("select");
  select.append(...names.map((name) => element("option", { value: name, textContent: name })));
  byId("device-cameras").hidden = cameras.length === 0;
  select.addEventListener("change", () => {
    if (select.value) addCamera(select.value);
    select.value = "";
  });
}

function end(stream) {
  for (const track of stream.getTracks()) track.stop();
}

async function still(video) {
  const canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  return new File([blob], `camera-${new Date().toTimeString().slice(0, 8).replaceAll(":", "")}.jpg`, { type: "image/jpeg" });
}
