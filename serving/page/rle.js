/** COCO's compressed run lengths. */

/**
 * The run lengths in COCO's text: alternately outside and inside the object, down the columns.
 *
 * Each character holds five bits, lowest first, plus 48; bit 5 says that the number goes on, bit 4 of the last one is
 * the sign. From the fourth number on, each is the difference to the number two places before (pycocotools,
 * rleToString).
 *
 * @param {string} text
 * @returns {number[]}
 */
export function runsOf(text) {
  const runs = [];
  let value = 0;
  let place = 1;
  for (const character of text) {
    const code = character.charCodeAt(0) - 48;
    value += (code & 31) * place;
    place *= 32;
    if (code & 32) continue;
    if (code & 16) value -= place;
    runs.push(value + (runs.length > 2 ? runs[runs.length - 2] : 0));
    value = 0;
    place = 1;
  }
  return runs;
}

/**
 * A mask, cut to its object and thinned to every `step`-th row and column.
 *
 * @param {{size: [number, number], counts: string}} rle size: height and width
 * @param {number} step 1 or more
 * @returns {{x: number, y: number, width: number, height: number, data: Uint8Array}} x, y, width and height in thinned
 *   pixels; data row by row, 1 inside the object; width and height are 0 if nothing is left
 */
export function decodeMask(rle, step = 1) {
  const [height, width] = rle.size;
  const rows = Math.ceil(height / step);
  const columns = Math.ceil(width / step);
  const spans = []; // [column, first row, last row], thinned
  let [left, top, right, bottom] = [columns, rows, -1, -1];
  let at = 0;
  let inside = false;
  for (const run of runsOf(rle.counts)) {
    const end = Math.min(at + run, height * width);
    while (inside && at < end) {
      const column = Math.floor(at / height);
      const until = Math.min(end, (column + 1) * height);
      const first = Math.ceil((at - column * height) / step);
      const last = Math.floor((until - 1 - column * height) / step);
      if (column % step === 0 && first <= last) {
        spans.push([column / step, first, last]);
        left = Math.min(left, column / step);
        right = Math.max(right, column / step);
        top = Math.min(top, first);
        bottom = Math.max(bottom, last);
      }
      at = until;
    }
    at = end;
    inside = !inside;
  }
  if (right < 0) return { x: 0, y: 0, width: 0, height: 0, data: new Uint8Array(0) };
  const mask = { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
  mask.data = new Uint8Array(mask.width * mask.height);
  for (const [column, first, last] of spans) {
    for (let row = first; row <= last; row++) mask.data[(row - top) * mask.width + column - left] = 1;
  }
  return mask;
}
