/** Which detections of two models are the same object. */

/** Boxes that overlap at least this much, of one class, are one object. */
export const SAME = 0.5;

/**
 * Intersection over union of two boxes.
 *
 * @param {number[]} a left, top, right, bottom
 * @param {number[]} b
 */
export function iou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return (width * height) / (area(a) + area(b) - width * height);
}

/**
 * Pair detections of one class whose boxes overlap; the pairs that overlap most come first, each detection is in one.
 *
 * @param {{class: string, box: number[]}[]} ones
 * @param {{class: string, box: number[]}[]} others
 * @returns {{pairs: [number, number][], onlyOnes: number[], onlyOthers: number[]}} places in the two lists
 */
export function match(ones, others) {
  const candidates = [];
  ones.forEach((one, i) => {
    others.forEach((other, j) => {
      const overlap = one.class === other.class ? iou(one.box, other.box) : 0;
      if (overlap >= SAME) candidates.push([overlap, i, j]);
    });
  });
  candidates.sort((a, b) => b[0] - a[0]);
  const [left, right, pairs] = [new Set(ones.keys()), new Set(others.keys()), []];
  for (const [, i, j] of candidates) {
    if (left.has(i) && right.has(j)) {
      pairs.push([i, j]);
      left.delete(i);
      right.delete(j);
    }
  }
  return { pairs, onlyOnes: [...left], onlyOthers: [...right] };
}
