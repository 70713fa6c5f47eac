// The page: takes photos one after the other, sends each to the server, and shows the answers.
import { start } from "./camera.js";

const MOST_RESULTS = 50;
const find = (selector, within = document) => within.querySelector(selector);
const results = find("#results");
const about = await (await fetch("/about")).json();
let queue = Promise.resolve();
let waiting = 0;

describe();
find("#files").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = ""; // The same file can be chosen again.
});
document.addEventListener("paste", (event) => take(event.clipboardData, "The clipboard holds no photo."));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  find("#drop").classList.add("over");
});
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, () => find("#drop").classList.remove("over"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer, "This was no file. Save the picture first, then drop the file.");
});
start({ classify, show, complain, keep: (answer) => keep("Camera", answer) });

function describe() {
  const names = about.classes;
  const shown = names.slice(0, 10).join(", ") + (names.length > 10 ? `, and ${names.length - 10} more` : "");
  find("#about").textContent =
    `${about.run} knows ${names.length} classes: ${shown}. It sees every photo as ` +
    `${about.width} × ${about.height}${about.gray ? " gray" : ""} pixels.`;
}

function take(transfer, otherwise) {
  const files = [...transfer.files];
  if (files.length) add(files);
  else complain([otherwise]);
}

function add(files) {
  complain([]);
  waiting += files.length;
  for (const file of files) queue = queue.then(() => handle(file));
}

async function handle(file) {
  find("#status").textContent = `${file.name}: waiting for the answer` + (waiting > 1 ? `, ${waiting - 1} more photos` : "");
  try {
    keep(file.name, await classify(file));
  } catch (error) {
    complain([`${file.name}: ${error.message}.`], true);
    find("#status").textContent = "";
  }
  waiting -= 1;
}

// Returns the answer about a file, or throws an Error whose message is a sentence without its end.
async function classify(file) {
  if (file.size > about.bytes) throw new Error(`larger than ${about.bytes / 2 ** 20} MB; save it smaller`);
  let content;
  try {
    content = await file.arrayBuffer();
  } catch {
    throw new Error("it cannot be read; a folder cannot be dropped, only the photos in it");
  }
  let response;
  try {
    response = await fetch("/classify", { method: "POST", body: content });
  } catch {
    throw new Error("no answer; the program in the terminal has ended. Start it again and open the address that it prints");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function keep(name, answer) {
  const item = document.createElement("li");
  item.className = "result";
  show(item, answer, name);
  results.prepend(item);
  if (results.children.length > MOST_RESULTS) results.lastChild.remove();
  const best = answer.classes[0];
  find("#status").textContent = `${name}: ${best.name}, ${percent(best.probability)}`;
}

// Fills an element with the answer about a photo.
function show(element, answer, name = "") {
  const content = find("#result").content.cloneNode(true);
  const best = answer.classes[0];
  find("h2", content).textContent = name;
  for (const kind of ["photo", "heat"]) find(`.${kind} img`, content).src = answer[kind];
  for (const { name, probability } of answer.classes) {
    const bar = find("#bar").content.cloneNode(true);
    find("bdi", bar).textContent = name;
    find(".bar span", bar).style.width = `${100 * probability}%`;
    find(".percent", bar).textContent = percent(probability);
    find(".classes", content).append(bar);
  }
  find(".photo img", content).alt = name;
  find(".heat img", content).alt = `The parts of the photo that spoke for ${best.name} are bright`;
  const others = answer.others ? `${answer.others} other classes are less probable. ` : "";
  find(".answer .small", content).textContent = `${others}${answer.milliseconds} ms`;
  element.replaceChildren(content);
}

function percent(probability) {
  if (probability > 0 && probability < 0.01) return "< 1 %";
  if (probability < 1 && probability > 0.99) return "> 99 %";
  return `${Math.round(100 * probability)} %`;
}

function complain(sentences, more = false) {
  const lines = sentences.map((sentence) => {
    const line = document.createElement("p");
    line.className = "note";
    line.textContent = sentence;
    return line;
  });
  if (more) find("#errors").append(...lines);
  else find("#errors").replaceChildren(...lines);
}
