// The drawing of a denoiser: one box per block, filled as far as its share goes; a U where there are down and up blocks.
import { h } from "./twin.js";

const WIDTH = 360, BOX = 166;

/** Return {boxes: [{x, y}], lines: [[x1, y1, x2, y2]], skips, height, row}: the U that down, middle and up blocks make. */
function letterU(blocks, row, gap) {
  const find = (pattern) => blocks.flatMap((name, i) => (pattern.test(name) ? [i] : []));
  const downs = find(/^down_blocks\.\d+$/), ups = find(/^up_blocks\.\d+$/);
  if (!downs.length || !ups.length || ups[0] < downs.at(-1)) return null;
  const before = blocks.map((_, i) => i).filter((i) => i < downs[0]), after = blocks.map((_, i) => i).filter((i) => i > ups.at(-1));
  const middle = blocks.map((_, i) => i).filter((i) => i > downs.at(-1) && i < ups[0]);
  const top = Math.max(before.length, after.length), deep = Math.max(downs.length, ups.length), step = row + gap;
  const boxes = [], put = (i, x, level) => { boxes[i] = { x, y: level * step + 1 }; };
  before.forEach((i, k) => put(i, 1, top - before.length + k));
  downs.forEach((i, k) => put(i, 1, top + k));
  middle.forEach((i, k) => put(i, (WIDTH - BOX) / 2, top + deep + k));
  ups.forEach((i, k) => put(i, WIDTH - BOX - 1, top + ups.length - 1 - k));
  after.forEach((i, k) => put(i, WIDTH - BOX - 1, top - 1 - k));
  const pairs = downs.slice(0, ups.length).map((i, k) => [i, ups[ups.length - 1 - k]]);
  return { boxes, skips: pairs.map(([from, to]) => [boxes[from].x + BOX, boxes[from].y + row / 2, boxes[to].x, boxes[to].y + row / 2]),
    height: (top + deep + middle.length) * step, row };
}

/** Return the same for a chain: two columns, read downwards. */
function chain(blocks, row, gap) {
  const rows = Math.ceil(blocks.length / 2);
  const boxes = blocks.map((_, i) => ({ x: i < rows ? 1 : WIDTH - BOX - 1, y: (i % rows) * (row + gap) + 1 }));
  return { boxes, skips: [], height: rows * (row + gap), row };
}

/** Return {element, draw}: draw({model, fill, texts, current, describe}); `pick` is called with the index of a clicked block. */
export function drawing(pick) {
  const picture = h("svg:svg", { role: "img" });

  function draw({ blocks, fill, texts, current, describe }) {
    const { boxes, skips, height, row } = letterU(blocks, 30, 7) ?? chain(blocks, 23, 4);
    const flow = boxes.slice(1).map((to, i) => [boxes[i], to]).filter(([from, to]) => from.x === to.x);
    picture.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    picture.setAttribute("aria-label", describe);
    picture.replaceChildren(
      ...skips.map(([x1, y1, x2, y2]) => h("svg:line", { class: "skip", x1, y1, x2, y2 })),
      ...flow.map(([from, to]) => h("svg:line", { class: "flow", x1: from.x + BOX / 2, x2: to.x + BOX / 2,
        y1: Math.min(from.y, to.y) + row, y2: Math.max(from.y, to.y) })),
      ...boxes.map(({ x, y }, i) => h("svg:g", { class: i === current ? "block chosen" : "block", onclick: () => pick(i) },
        h("svg:rect", { class: "ground", x, y, width: BOX, height: row, rx: 4 }),
        fill[i] ? h("svg:rect", { class: "fill", x, y, width: Math.max(1, BOX * fill[i]), height: row, rx: Math.min(4, BOX * fill[i] * 0.5) }) : null,
        h("svg:rect", { class: "edge", x, y, width: BOX, height: row, rx: 4 }),
        h("svg:text", { x: x + 7, y: y + row / 2 + 4 }, blocks[i].replace("transformer_blocks", "blocks")),
        h("svg:text", { class: "share", x: x + BOX - 7, y: y + row / 2 + 4, "text-anchor": "end" }, texts[i]))));
  }
  return { element: h("div", { class: "drawing" }, picture), draw };
}
