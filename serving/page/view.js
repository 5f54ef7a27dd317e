/** An image on a canvas with the masks, boxes and labels of its objects. */

import { decodeMask } from "./rle.js";

/** Longest side of the canvas, pixels: larger images are shown reduced. */
export const SHOWN_SIDE = 1600;

/** Smaller images are shown enlarged by a whole factor, so that edges and labels are sharp. */
const LEAST_SIDE = 800;

/** Longest side of a mask in memory, pixels. */
const MASK_SIDE = 1024;

/** The colour of a class, equal in every image: neighbouring numbers are far apart on the colour wheel. */
export function colourOf(classId) {
  const hue = (classId * 137.508 + 20) % 360;
  return { hue, css: `hsl(${hue} 90% 55%)` };
}

export class View {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    this.picture = null;
    this.objects = [];
  }

  /** Show an image; `picture` is drawn at the canvas' size. */
  setPicture(picture, width, height) {
    const side = Math.max(width, height);
    const scale = side < LEAST_SIDE ? Math.min(8, Math.ceil(LEAST_SIDE / side)) : Math.min(1, SHOWN_SIDE / side);
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    this.canvas.style.width = `calc(74vh * ${(width / height).toFixed(4)})`;
    this.picture = picture;
    this.objects = [];
  }

  /** Objects of the answer of POST /predict for this image, which has these pixels. */
  setObjects(detections, width, height) {
    this.size = { width, height };
    this.objects = detections.map((found) => ({ found, layer: paint(found) }));
  }

  /**
   * Draw.
   *
   * @param {{index: number, different: boolean}[]} shown which objects
   * @param {{masks: boolean, boxes: boolean, labels: boolean}} parts
   * @param {number | null} lit the object to stress
   */
  draw(shown, parts, lit = null) {
    const pen = this.canvas.getContext("2d");
    const { width, height } = this.canvas;
    pen.clearRect(0, 0, width, height);
    if (this.picture) pen.drawImage(this.picture, 0, 0, width, height);
    if (!this.size) return;
    const scale = width / this.size.width;
    const line = Math.max(1.5, Math.max(width, height) / 400);
    for (const { index, different } of shown.toReversed()) {
      const { found, layer } = this.objects[index];
      pen.globalAlpha = lit === null || lit === index ? 1 : 0.25;
      if (parts.masks && layer) {
        pen.drawImage(
          layer.canvas,
          layer.x * layer.cell[0] * width,
          layer.y * layer.cell[1] * height,
          layer.canvas.width * layer.cell[0] * width,
          layer.canvas.height * layer.cell[1] * height,
        );
      }
      if (parts.boxes || lit === index || different) this.#box(pen, found, scale, line, different);
    }
    const taken = [];
    for (const { index, different } of shown) {
      pen.globalAlpha = lit === null || lit === index ? 1 : 0.25;
      if (parts.labels || lit === index) this.#label(pen, this.objects[index].found, scale, different, taken);
    }
    pen.globalAlpha = 1;
  }

  #box(pen, found, scale, line, different) {
    const [left, top, right, bottom] = found.box.map((side) => side * scale);
    for (const [colour, width] of [["rgb(0 0 0 / 70%)", 2.2 * line], [colourOf(found.class_id).css, line]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.setLineDash(different ? [5 * line, 3 * line] : []);
      pen.strokeRect(left, top, right - left, bottom - top);
    }
    pen.setLineDash([]);
  }

  /** Write a label at the top of the box, or below those that are there already (`taken`). */
  #label(pen, found, scale, different, taken) {
    // As large on the screen as other text, whatever the canvas is scaled to.
    const zoom = this.canvas.width / (this.canvas.clientWidth || this.canvas.width);
    const size = Math.max(9, 12.5 * zoom);
    const text = `${different ? "≠ " : ""}${found.class} ${Math.round(found.score * 100)} %`;
    pen.font = `600 ${size}px system-ui, sans-serif`;
    const wide = pen.measureText(text).width + 1.3 * size;
    const tall = 1.5 * size;
    const x = Math.max(0, Math.min(found.box[0] * scale, this.canvas.width - wide));
    let y = Math.max(0, Math.min(found.box[1] * scale - tall, this.canvas.height - tall));
    const covers = (other) =>
      x < other.x + other.wide && other.x < x + wide && y < other.y + other.tall && other.y < y + tall;
    for (let other = taken.find(covers); other && y + 2 * tall < this.canvas.height; other = taken.find(covers)) {
      y = other.y + other.tall + 1;
    }
    taken.push({ x, y, wide, tall });
    pen.fillStyle = "rgb(10 12 16 / 85%)";
    pen.fillRect(x, y, wide, tall);
    pen.fillStyle = colourOf(found.class_id).css;
    pen.fillRect(x, y, 0.35 * size, tall);
    pen.fillStyle = "white";
    pen.textBaseline = "middle";
    pen.fillText(text, x + 0.75 * size, y + tall / 2);
  }

  /** The best of the shown objects at a point of the canvas' element, or null. */
  at(clientX, clientY, shown) {
    if (!this.size) return null;
    const frame = this.canvas.getBoundingClientRect();
    const x = (clientX - frame.left) / frame.width;
    const y = (clientY - frame.top) / frame.height;
    const hit = ({ index }) => {
      const { found, layer } = this.objects[index];
      if (!layer) {
        const [px, py] = [x * this.size.width, y * this.size.height];
        return px >= found.box[0] && px <= found.box[2] && py >= found.box[1] && py <= found.box[3];
      }
      const column = Math.floor(x / layer.cell[0]) - layer.x;
      const row = Math.floor(y / layer.cell[1]) - layer.y;
      const inside = column >= 0 && row >= 0 && column < layer.canvas.width && row < layer.canvas.height;
      return inside && layer.mask[row * layer.canvas.width + column] === 1;
    };
    return shown.find(hit)?.index ?? null;
  }
}

/** An object's mask in its colour with a solid edge; null if it is empty. */
function paint(found) {
  if (!found.mask) return null;
  const [height, width] = found.mask.size;
  const step = Math.ceil(Math.max(height, width) / MASK_SIDE);
  const mask = decodeMask(found.mask, step);
  if (!mask.width) return null;
  const canvas = document.createElement("canvas");
  canvas.width = mask.width;
  canvas.height = mask.height;
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(mask.width, mask.height);
  const [red, green, blue] = rgb(colourOf(found.class_id).hue);
  const inside = (x, y) => x >= 0 && y >= 0 && x < mask.width && y < mask.height && mask.data[y * mask.width + x];
  for (let y = 0; y < mask.height; y++) {
    for (let x = 0; x < mask.width; x++) {
      const i = y * mask.width + x;
      if (!mask.data[i]) continue;
      const edge = !(inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1));
      pixels.data.set([red, green, blue, edge ? 255 : 120], 4 * i);
    }
  }
  pen.putImageData(pixels, 0, 0);
  return { canvas, mask: mask.data, x: mask.x, y: mask.y, cell: [step / width, step / height] };
}

/** Red, green and blue, 0 to 255, of hsl(hue 90% 55%). */
function rgb(hue) {
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (0.55 - 0.405 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}
