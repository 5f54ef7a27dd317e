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

/** The text of run lengths; the reverse of `runsOf`. */
function textOf(runs) {
  let text = "";
  runs.forEach((run, i) => {
    let value = i > 2 ? run - runs[i - 2] : run;
    for (let more = true; more; ) {
      const bits = value & 31;
      value >>= 5;
      more = value !== (bits & 16 ? -1 : 0);
      text += String.fromCharCode(48 + bits + (more ? 32 : 0));
    }
  });
  return text;
}

/** An object's pixels, down the columns: yields [column, first row, last row]. */
function* spansOf({ size: [height, width], counts }) {
  let at = 0;
  let inside = false;
  for (const run of runsOf(counts)) {
    const end = Math.min(at + run, height * width);
    while (inside && at < end) {
      const column = Math.floor(at / height);
      const until = Math.min(end, (column + 1) * height);
      yield [column, at - column * height, until - 1 - column * height];
      at = until;
    }
    at = end;
    inside = !inside;
  }
}

/**
 * A mask with the size of its image, each of whose pixels is one or more there.
 *
 * @param {{size: [number, number], counts: string}} rle size: height and width
 * @param {number} width of the image, at least the mask's
 * @param {number} height
 * @returns {{size: [number, number], counts: string}}
 */
export function enlarged(rle, width, height) {
  const [rows, columns] = rle.size;
  if (rows === height && columns === width) return rle;
  const row = (place) => Math.round((place * height) / rows);
  const column = (place) => Math.round((place * width) / columns);
  const spans = new Map(); // by column of the mask: [first row, row after the last one] in the image
  for (const [place, first, last] of spansOf(rle)) {
    if (!spans.has(place)) spans.set(place, []);
    spans.get(place).push([row(first), row(last + 1)]);
  }
  const runs = [];
  let at = 0; // pixels in the runs
  for (const [place, rowSpans] of spans) {
    for (let x = column(place); x < column(place + 1); x++) {
      for (const [first, end] of rowSpans) {
        const start = x * height + first;
        if (runs.length && start === at) runs[runs.length - 1] += end - first; // on from the column before
        else runs.push(start - at, end - first);
        at = x * height + end;
      }
    }
  }
  if (at < width * height) runs.push(width * height - at);
  return { size: [height, width], counts: textOf(runs) };
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
  for (const [column, from, to] of spansOf(rle)) {
    const first = Math.ceil(from / step);
    const last = Math.floor(to / step);
    if (column % step || first > last) continue;
    spans.push([column / step, first, last]);
    left = Math.min(left, column / step);
    right = Math.max(right, column / step);
    top = Math.min(top, first);
    bottom = Math.max(bottom, last);
  }
  if (right < 0) return { x: 0, y: 0, width: 0, height: 0, data: new Uint8Array(0) };
  const mask = { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
  mask.data = new Uint8Array(mask.width * mask.height);
  for (const [column, first, last] of spans) {
    for (let row = first; row <= last; row++) mask.data[(row - top) * mask.width + column - left] = 1;
  }
  return mask;
}
