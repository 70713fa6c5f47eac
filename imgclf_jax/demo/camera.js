// The camera: its pictures are classified one after the other, as fast as the answers come.
const PAUSE = 100; // milliseconds between an answer and the next picture
const SIDE = 640; // most pixels of a side of a picture
const REASONS = {
  NotAllowedError: "The browser may not use the camera. Allow it beside the address of this page, or choose a photo.",
  NotFoundError: "This computer has no camera that the browser can find. Choose a photo instead.",
  NotReadableError: "The camera is used by another program. Close that program, or choose a photo.",
};
const OTHER = "This browser does not give the camera to this page. Choose a photo instead.";

// Lets the buttons start and stop the camera. `page` has the functions classify, show, complain and keep.
export function start(page) {
  const [button, keep, panel] = ["#camera", "#keep", "#live"].map((id) => document.querySelector(id));
  const video = panel.querySelector("video");
  let stream = null;
  let last = null;

  button.addEventListener("click", () => (stream ? stop() : open()));
  keep.addEventListener("click", () => last && page.keep(last));

  async function open() {
    page.complain([]);
    button.disabled = true;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: SIDE }, facingMode: "environment" } });
    } catch (error) {
      return page.complain([REASONS[error.name] ?? OTHER]);
    } finally {
      button.disabled = false;
    }
    for (const track of stream.getTracks()) track.addEventListener("ended", stop);
    video.srcObject = stream;
    await video.play();
    label("Stop the camera");
    watch(stream);
  }

  function stop() {
    for (const track of stream?.getTracks() ?? []) track.stop();
    stream = last = video.srcObject = null;
    label("Use the camera");
  }

  function label(text) {
    button.textContent = text;
    button.setAttribute("aria-expanded", String(stream !== null));
    panel.hidden = stream === null;
  }

  async function watch(mine) {
    while (stream === mine) {
      try {
        if (!document.hidden) {
          last = await page.classify(await picture());
          if (stream === mine) page.show(panel.querySelector(".result"), last);
        }
      } catch (error) {
        stop();
        return page.complain([`Camera: ${error.message}.`]);
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }

  function picture() {
    const scale = Math.min(1, SIDE / Math.max(video.videoWidth, video.videoHeight));
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth * scale, video.videoHeight * scale];
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  }
}
