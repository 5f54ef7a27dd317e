/** The page: chooses an image, asks the server, shows what it found. */

import { RequestError, ask, pause, rememberToken, untilReady } from "./api.js";
import { match } from "./compare.js";
import { save, toCoco, toYolo } from "./files.js";
import { SHOWN_SIDE, View, colourOf } from "./view.js";

/** Scores from here on are asked for; the slider then needs no request. */
const LOWEST_SCORE = 0.05;
const MOST_OBJECTS = 100;
const MOST_RETRIES = 5;

const $ = (id) => document.getElementById(id);

/** What the server allows; filled at the start. */
let options = { token: false, candidate: false, feedback_days: null, media_types: [], examples: 0 };
/** The chosen image: blob, name, picture (canvas or null) and the pixels it is shown with. */
let image = null;
/**
 * Sides by role, "champion" and maybe "candidate": {view, element, answer, hidden: Set, rows, pointed, tapped}; the last
 * two are the object under the pointer or focus, and the one that was tapped.
 */
const sides = new Map();
/** Ends the work on an image when another is chosen. */
let work = new AbortController();

// Messages

function say(text) {
  $("alert").textContent = "";
  $("status").textContent = text;
}

function complain(text) {
  $("status").textContent = "";
  $("alert").textContent = text;
}

/** Run requests until they succeed: waits while the server is away or busy, and says so; throws what cannot be mended. */
async function patiently(requests, signal) {
  let wasAway = false;
  for (let retry = 0; ; retry++) {
    try {
      const result = await requests();
      return { result, wasAway };
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      if (error.kind === "away") {
        wasAway = true;
        complain(`${error.message} The page goes on when it is back.`);
        await untilReady(signal);
        say("The server is back.");
      } else if (error.kind === "busy" && retry < MOST_RETRIES) {
        complain(`${error.message} Trying again in ${error.wait} s.`);
        await pause(error.wait, signal);
      } else {
        throw error;
      }
    }
  }
}

/** Handle what an action throws. */
function guarded(action) {
  return async (...given) => {
    try {
      await action(...given);
    } catch (error) {
      if (error.name === "AbortError") return;
      complain(error instanceof RequestError ? error.message : `The page has failed: ${error.message}`);
      if (error.kind === "token") askForToken();
      if (!(error instanceof RequestError)) throw error;
    }
  };
}

// Start

const start = guarded(async () => {
  const { wasAway } = await patiently(async () => {
    options = await ask("page/options");
  });
  $("limits").textContent = `Up to ${options.max_body_mb} MB and ${options.max_megapixels} megapixels.`;
  $("compare-label").hidden = !options.candidate;
  $("report").hidden = options.feedback_days === null;
  $("report-hint").textContent = `Stores the image and these objects on the server for ${options.feedback_days} days.`;
  showExamples();
  await showModel();
  if (wasAway) say("The server is back.");
});

function askForToken() {
  $("token").hidden = false;
  $("token-text").focus();
}

$("token").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberToken($("token-text").value);
  $("token-text").value = "";
  $("token").hidden = true;
  say("");
  again();
});

const again = guarded(async () => {
  await showModel();
  if (image) await detect();
});

function showExamples() {
  const items = Array.from({ length: options.examples }, (_, number) => {
    const picture = make("img", { src: `page/examples/${number}.jpg`, alt: `Example ${number + 1}`, loading: "lazy" });
    const button = make("button", { type: "button" }, picture);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      choose(() => fetchExample(picture.src), `example-${number + 1}.jpg`, button);
    });
    return make("li", {}, button);
  });
  $("examples").replaceChildren(...items);
}

async function fetchExample(address) {
  try {
    return await (await fetch(address)).blob();
  } catch {
    throw new RequestError("away", "The server does not answer.");
  }
}

// The image

$("pick").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) choose(file, file.name);
  $("file").value = "";
});

document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
  if (file) {
    event.preventDefault();
    choose(file, file.name || "pasted.png");
  } else if (event.target.tagName !== "INPUT") {
    complain("The clipboard has no image.");
  }
});

for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("dropping").classList.add("on");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("dropping").classList.remove("on");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("dropping").classList.remove("on");
  const [file] = event.dataTransfer.files;
  if (file) choose(file, file.name);
  else complain("That is no file. Save the image first, and drop the file.");
});

/** Take an image, given as a blob or by a function that fetches one. */
const choose = guarded(async (source, name, button = null) => {
  work.abort();
  work = new AbortController();
  const { signal } = work;
  image = null;
  $("results").hidden = true;
  for (const each of document.querySelectorAll("#examples button")) {
    each.setAttribute("aria-pressed", String(each === button));
  }
  say(`Reading ${name} …`);
  const blob = source instanceof Blob ? source : (await patiently(source, signal)).result;
  if (blob.size > options.max_body_mb * 1e6) {
    const size = (blob.size / 1e6).toFixed(1);
    throw new RequestError("refused", `${name} is too large: ${size} MB; the server takes ${options.max_body_mb} MB.`);
  }
  const picture = await reducedPicture(blob);
  signal.throwIfAborted();
  image = { blob, name, picture };
  await detect();
});

/** The image reduced to what is shown, as a canvas; null if the browser cannot decode it. */
async function reducedPicture(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    return null; // the server may say why
  }
  const scale = Math.min(1, SHOWN_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", {
    width: Math.max(1, Math.round(bitmap.width * scale)),
    height: Math.max(1, Math.round(bitmap.height * scale)),
  });
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

// Detection

function predict(role, parameters, signal) {
  const query = new URLSearchParams({
    score_threshold: String(LOWEST_SCORE),
    max_detections: String(MOST_OBJECTS),
    ...parameters,
  });
  if (role === "candidate") query.set("candidate", "true");
  const type = options.media_types.includes(image.blob.type) ? image.blob.type : "application/octet-stream";
  return ask(`predict?${query}`, { method: "POST", body: image.blob, type, signal });
}

const roles = () => (options.candidate && $("compare").checked ? ["champion", "candidate"] : ["champion"]);

async function detect() {
  const { signal } = work;
  const wanted = roles();
  say(`Looking for objects in ${image.name} …`);
  const { result: answers, wasAway } = await patiently(
    () => Promise.all(wanted.map((role) => predict(role, {}, signal))),
    signal,
  );
  signal.throwIfAborted();
  for (const role of [...sides.keys()]) removeSide(role);
  wanted.forEach((role, i) => addSide(role, answers[i]));
  $("results").hidden = false;
  $("wrong-image").disabled = false;
  $("wrong-image").textContent = wanted.length === 2 ? "The champion's result is wrong" : "This result is wrong";
  for (const side of sides.values()) fitPicture(side);
  say("");
  refresh();
  announce(wasAway ? "The server is back. " : "");
  const { version } = answers[0].model;
  if (version !== shownVersion) await showModel();
}

function addSide(role, answer) {
  const element = $("side").content.firstElementChild.cloneNode(true);
  const [entry] = answer.images;
  const view = new View(element.querySelector("canvas"));
  const side = { role, element, answer, entry, view, hidden: new Set(), pointed: null, tapped: null };
  sides.set(role, side);
  element.querySelector("h3").textContent = `${capital(role)}: ${titleOf(answer.model)}`;
  $("sides").append(element);
  side.rows = entry.detections.map((found, index) => makeRow(side, found, index));
  element.querySelector(".found").replaceChildren(...side.rows.map((row) => row.element));
  view.canvas.addEventListener("pointermove", (event) => point(side, objectAt(side, event)));
  view.canvas.addEventListener("pointerleave", () => point(side, null));
}

function removeSide(role) {
  sides.get(role).element.remove();
  sides.delete(role);
}

function fitPicture(side) {
  const { width, height, detections } = side.entry;
  side.view.setPicture(image.picture, width, height);
  side.view.setObjects(detections, width, height);
}

/** A line of the list: shown or not, class, score, and "wrong" if the server stores that. */
function makeRow(side, found, index) {
  const box = make("input", { type: "checkbox", checked: true });
  const swatch = make("span", { className: "swatch" });
  swatch.style.background = colourOf(found.class_id).css;
  const mark = make("span", { className: "mark" });
  const label = make("label", {}, box, swatch, make("span", {}, found.class), mark);
  const element = make("li", {}, label, make("span", { className: "score" }, percent(found.score)));
  box.addEventListener("change", () => {
    if (box.checked) side.hidden.delete(index);
    else side.hidden.add(index);
    refresh();
  });
  if (options.feedback_days !== null) {
    const button = make("button", { type: "button" }, "Wrong");
    button.setAttribute("aria-label", `${found.class}, ${percent(found.score)}: report as wrong`);
    button.addEventListener("click", () => report(side, index, button));
    element.append(button);
  }
  element.addEventListener("pointerenter", () => point(side, index));
  element.addEventListener("pointerleave", () => point(side, null));
  element.addEventListener("focusin", () => point(side, index));
  element.addEventListener("focusout", () => point(side, null));
  return { element, mark };
}

const objectAt = (side, { clientX, clientY }) => side.view.at(clientX, clientY, side.shown);
/** The number of the object to stress: one that is shown, under the pointer or focus, or else tapped. Null: none. */
const lit = (side) => [side.pointed, side.tapped].find((index) => chosen(side).includes(index)) ?? null;

function point(side, index) {
  if (side.pointed === index) return;
  side.pointed = index;
  light(side);
}

// No pointer stays where a finger has tapped: the object stays lit until the next tap or click, wherever that is.
document.addEventListener("pointerup", (event) => {
  for (const side of sides.values()) {
    const tapped = event.target === side.view.canvas ? objectAt(side, event) : null;
    if (side.tapped === tapped) continue;
    side.tapped = tapped;
    light(side);
  }
});

/** Stress an object's row and picture. */
function light(side) {
  side.rows.forEach((row, i) => row.element.classList.toggle("lit", i === lit(side)));
  draw(side);
}

// Showing

const threshold = () => Number($("threshold").value) / 100;

/** Objects of a side with a sufficient score, hidden ones included: their numbers. */
function passing(side) {
  return [...side.entry.detections.keys()].filter((i) => side.entry.detections[i].score >= threshold());
}

/** Show what the settings say; asks nothing of the server. */
function refresh() {
  $("threshold-shown").textContent = `${$("threshold").value} %`;
  const different = new Map([...sides.keys()].map((role) => [role, new Set()]));
  $("differences").textContent = "";
  if (sides.size === 2) compareSides(different);
  for (const side of sides.values()) {
    const numbers = passing(side);
    const odd = different.get(side.role);
    side.shown = numbers
      .filter((i) => !side.hidden.has(i))
      .map((index) => ({ index, different: odd.has(index) }));
    if (!chosen(side).includes(side.tapped)) side.tapped = null;
    side.rows.forEach((row, i) => {
      row.element.hidden = !numbers.includes(i);
      row.element.classList.toggle("different", odd.has(i));
      row.mark.textContent = odd.has(i) ? `only ${side.role}` : "";
    });
    side.element.querySelector(".count").textContent = summary(side, numbers);
    side.view.canvas.setAttribute("aria-label", `${image.name}, ${side.role}: ${summary(side, numbers)}`);
    light(side);
  }
}

function compareSides(different) {
  const [one, other] = [sides.get("champion"), sides.get("candidate")];
  const [ones, others] = [passing(one), passing(other)];
  const { pairs, onlyOnes, onlyOthers } = match(
    ones.map((i) => one.entry.detections[i]),
    others.map((i) => other.entry.detections[i]),
  );
  onlyOnes.forEach((i) => different.get("champion").add(ones[i]));
  onlyOthers.forEach((i) => different.get("candidate").add(others[i]));
  const same = sameModel(one.answer.model, other.answer.model) ? " Both are the same version." : "";
  $("differences").textContent =
    `Found by both: ${pairs.length}. Only by the champion: ${onlyOnes.length}. ` +
    `Only by the candidate: ${onlyOthers.length}.${same}`;
}

function draw(side) {
  const parts = { masks: $("masks").checked, boxes: $("boxes").checked, labels: $("labels").checked };
  side.view.draw(side.shown, parts, lit(side));
}

function summary(side, numbers) {
  if (!numbers.length) return side.entry.detections.length ? "No object has this score" : "No objects";
  const counts = new Map();
  for (const i of numbers) {
    const name = side.entry.detections[i].class;
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  const list = [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
  return `${numbers.length} ${numbers.length === 1 ? "object" : "objects"}: ${list}`;
}

/** Tell screen readers and the status line what there is. */
function announce(before = "") {
  const parts = [...sides.values()].map((side) => {
    const text = summary(side, passing(side));
    return sides.size === 2 ? `${capital(side.role)}: ${text}` : text;
  });
  const unseen = image.picture ? "" : " This browser cannot show the image.";
  say(`${before}${parts.join(". ")}.${unseen}`);
}

let settled;
$("threshold").addEventListener("input", () => {
  refresh();
  clearTimeout(settled);
  settled = setTimeout(() => announce(), 500);
});
for (const id of ["masks", "boxes", "labels"]) $(id).addEventListener("change", refresh);
$("compare").addEventListener("change", guarded(async () => {
  try {
    await detect();
  } catch (error) {
    if (error.kind === "refused") $("compare").checked = false;
    throw error;
  }
}));
addEventListener("resize", () => sides.forEach(draw));

// Downloads and feedback

const stem = () => image.name.replace(/\.[^.]*$/, "") || "image";
const chosen = (side) => side.shown.map(({ index }) => index);

$("save-png").addEventListener("click", guarded(async () => {
  for (const { role, view } of sides.values()) {
    const blob = await new Promise((resolve) => view.canvas.toBlob(resolve, "image/png"));
    save(blob, `${stem()}${suffix(role)}.png`);
  }
}));

$("save-coco").addEventListener("click", () => {
  for (const side of sides.values()) {
    const { width, height, detections } = side.entry;
    const text = toCoco(chosen(side).map((i) => detections[i]), width, height);
    save(new Blob([text], { type: "application/json" }), `${stem()}${suffix(side.role)}.json`);
  }
});

$("save-yolo").addEventListener("click", guarded(async () => {
  for (const side of sides.values()) {
    const { result: answer } = await patiently(
      () => predict(side.role, { masks: "polygons" }, work.signal), work.signal,
    );
    const { width, height, detections } = answer.images[0];
    if (!sameModel(answer.model, side.answer.model) || detections.length !== side.entry.detections.length) {
      await detect();
      throw new RequestError("refused", "The server has a new model: these are its objects. Download them again.");
    }
    const text = toYolo(chosen(side).map((i) => detections[i]), width, height);
    save(new Blob([text], { type: "text/plain" }), `${stem()}${suffix(side.role)}.txt`);
  }
  announce();
}));

const suffix = (role) => (sides.size === 2 ? `-${role}` : "");

$("wrong-image").addEventListener("click", () => report(sides.get("champion"), null, $("wrong-image")));

/** Store the image with what is shown of a side; `index`: the wrong object, null for the result as a whole. */
const report = guarded(async (side, index, button) => {
  const numbers = passing(side);
  const body = JSON.stringify({
    image: await dataUrl(image.blob),
    model: side.answer.model,
    detections: numbers.map((i) => side.entry.detections[i]),
    wrong: index === null ? null : [numbers.indexOf(index)],
  });
  const { signal } = work;
  const request = { method: "POST", body, type: "application/json", signal };
  const { result: stored } = await patiently(() => ask("feedback", request), signal);
  button.disabled = true;
  say(`Thank you. It is stored for ${stored.deleted_after_days} days.`);
});

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result.replace(/^data:[^,]*,/, "")));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
}

// The model

let shownVersion = null;

async function showModel() {
  const { result: models } = await patiently(async () => {
    const found = [["Model", await ask("model")]];
    if (options.candidate) {
      // The candidate may be missing while the model answers.
      const candidate = await ask("model?candidate=true").catch((error) => {
        if (error.kind === "token") throw error;
        return null;
      });
      found.push(["Candidate", candidate]);
    }
    return found;
  });
  const [[, model]] = models;
  shownVersion = model.version;
  $("version").textContent = titleOf(model);
  const cards = models.map(([title, each]) =>
    make("div", {}, ...(models.length > 1 ? [make("h3", {}, title)] : []), ...describe(each)),
  );
  $("model").replaceChildren(make("div", { className: "models" }, ...cards));
}

function describe(model) {
  if (!model) return [make("p", { className: "hint" }, "It is not loaded.")];
  const rows = { Version: titleOf(model), Classes: model.classes.join(", "), "Input side": `${model.image_size} pixels` };
  const metrics = Object.entries(model.metrics).map(([name, value]) => [name.replace("_", " "), value.toFixed(3)]);
  const parts = [table(Object.entries(rows)), make("h3", {}, "Metrics")];
  parts.push(metrics.length ? table(metrics) : make("p", { className: "hint" }, "None are known of this model."));
  const lineage = Object.entries(model.lineage);
  if (lineage.length) {
    const groups = lineage.flatMap(([title, group]) => [make("h3", {}, capital(title)), table(Object.entries(group))]);
    parts.push(make("details", {}, make("summary", {}, "Lineage"), ...groups));
  }
  return parts;
}

const table = (rows) =>
  make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));

const titleOf = ({ name, version, alias }) =>
  `${name}${version ? ` version ${version}` : ""}${alias ? ` (${alias})` : ""}`;

const sameModel = (a, b) => a.name === b.name && a.version === b.version;

// Small things

const percent = (score) => `${Math.round(score * 100)} %`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

start();
