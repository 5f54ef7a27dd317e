/** Results as files to download. */

import { enlarged } from "./rle.js";

const round = (value, digits) => Number(value.toFixed(digits));

/**
 * Detections as COCO results, as pycocotools' loadRes reads them: boxes and masks in pixels of the image.
 *
 * @param {{box: number[], category_id: number, score: number, mask: object}[]} detections
 * @param {number} width of the image; the server reduces the masks of large ones
 * @param {number} height
 * @param {number} imageId
 */
export function toCoco(detections, width, height, imageId = 1) {
  const rows = detections.map((found) => ({
    image_id: imageId,
    category_id: found.category_id,
    category_name: found.class,
    bbox: [found.box[0], found.box[1], found.box[2] - found.box[0], found.box[3] - found.box[1]].map((x) => round(x, 2)),
    score: found.score,
    segmentation: enlarged(found.mask, width, height),
  }));
  return `${JSON.stringify(rows, null, 1)}\n`;
}

/**
 * Polygons as YOLO's segmentation text: a line for each object, "class x y x y ...", coordinates from 0 to 1.
 *
 * The format has one outline per object: further parts are joined by lines to the first point and back, which enclose
 * no area.
 *
 * @param {{class_id: number, mask: number[][]}[]} detections with polygons as x, y, x, y, ... in pixels
 * @param {number} width of the image
 * @param {number} height
 */
export function toYolo(detections, width, height) {
  const lines = detections
    .filter((found) => found.mask.length)
    .map((found) => {
      const [first, ...others] = found.mask;
      const outline = [...first];
      for (const part of others) outline.push(first[0], first[1], ...part, part[0], part[1]);
      const points = outline.map((value, i) => round(value / (i % 2 ? height : width), 6));
      return [found.class_id, ...points].join(" ");
    });
  return lines.map((line) => `${line}\n`).join("");
}

/** Give the user a file. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
