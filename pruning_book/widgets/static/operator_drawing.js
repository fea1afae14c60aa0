// The drawing of a denoiser's operators: cells at given places, each filled as far as its value goes; arrow keys walk.
import { h } from "./twin.js";

/** Return the index of the nearest cell in the direction of an arrow key, or -1 where there is none. */
export function neighbour(cells, current, key) {
  const vertical = key === "ArrowUp" || key === "ArrowDown", sign = key === "ArrowLeft" || key === "ArrowUp" ? -1 : 1;
  // Along the arrow, and across it: [middle, size].
  const spans = ([, x, y, width, height]) => (vertical ? [[y + height / 2, height], [x + width / 2, width]] : [[x + width / 2, width], [y + height / 2, height]]);
  const [[from, length], [side, size]] = spans(cells[current]);
  let best = -1, least = Infinity;
  cells.forEach((cell, i) => {
    const [[to, long], [other, wide]] = spans(cell), along = sign * (to - from), aside = Math.abs(other - side);
    const far = along + 3 * Math.max(0, aside - (size + wide) / 2) + 0.1 * aside; // what lies straight ahead comes first
    if (i !== current && along > (length + long) / 2 - 1 && far < least) [best, least] = [i, far];
  });
  return best;
}

/** Return {element, draw}: draw({grain, fill, gone, current, describe, speak}); `pick` is called with the operator of a chosen cell. */
export function operatorDrawing(name, map, pick) {
  let cells = [], chosen = 0;
  const picture = h("svg:svg", { viewBox: `-2 -2 ${map.width + 4} ${map.height + 4}`, role: "listbox", tabindex: 0, onkeydown: (event) => {
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    const next = neighbour(cells, chosen, event.key);
    if (next >= 0) pick(cells[next][0]);
  } });

  function cell([operator, x, y, width, height, label], i, { fill, gone, describe }) {
    const part = fill[operator], lost = gone[operator];
    const group = h("svg:g", { class: `cell${i === chosen ? " chosen" : ""}${lost ? " gone" : ""}`, role: "option", id: `${name}-cell-${operator}`,
      "aria-selected": i === chosen ? "true" : "false", "aria-label": describe(operator, label), onclick: () => pick(operator) },
    h("svg:rect", { class: "ground", x, y, width, height, rx: 3 }),
    part > 0 && !lost ? h("svg:rect", { class: "fill", x, y, width: Math.max(1, width * part), height, rx: Math.min(3, width * part * 0.5) }) : null,
    h("svg:rect", { class: "edge", x, y, width, height, rx: 3 }),
    lost ? h("svg:path", { class: "cross", d: `M${x + 2} ${y + height - 2}L${x + width - 2} ${y + 2}` }) : null,
    label ? h("svg:text", { x: x + width / 2, y: y + height / 2 + 4, "text-anchor": "middle" }, label) : null);
    return group;
  }

  function draw({ grain, current, title, ...shown }) {
    cells = map.grains[grain];
    chosen = Math.max(0, cells.findIndex(([operator]) => operator === current));
    const middle = map.width / 2;
    picture.setAttribute("aria-label", title);
    picture.setAttribute("aria-activedescendant", `${name}-cell-${cells[chosen][0]}`);
    picture.replaceChildren(
      ...map.levels.flatMap(([y, height, text]) => [
        h("svg:line", { class: "skip", x1: middle - 20, x2: middle + 20, y1: y + height / 2 + 9, y2: y + height / 2 + 9 }),
        h("svg:text", { class: "size", x: middle, y: y + height / 2 + 2, "text-anchor": "middle", "aria-hidden": "true" }, text)]),
      ...cells.map((entry, i) => cell(entry, i, shown)));
  }
  return { element: h("div", { class: "drawing operators" }, picture), draw };
}
