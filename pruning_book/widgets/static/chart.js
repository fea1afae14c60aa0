// A scatter of quality against cost: all measured stops, the path along one axis, and the current point with its spread.
import { h, number } from "./twin.js";

const WIDTH = 380, HEIGHT = 250, LEFT = 52, RIGHT = 12, TOP = 12, BOTTOM = 42;

/** Return about `count` round values between low and high. */
export function ticks(low, high, count = 5) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(i * step || 0); // no "-0"
  return found;
}

function scale(values, from, to) {
  const known = values.filter((value) => value !== null && value !== undefined);
  let low = Math.min(...known), high = Math.max(...known);
  if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
  const room = (high - low) * 0.06;
  low -= room; high += room;
  return { low, high, at: (value) => from + ((value - low) / (high - low)) * (to - from) };
}

/** Return the fewest decimals that tell these round values apart. */
function decimals(values) {
  const small = Math.abs(values[1] - values[0]) * 1e-6 || 1e-9;
  return [0, 1, 2, 3, 4, 5].find((digits) => values.every((v) => Math.abs(v - Number(v.toFixed(digits))) < small)) ?? 6;
}

const MARKS = {
  current: () => h("svg:circle", { class: "current", cx: 7, cy: 6, r: 5 }),
  reference: () => h("svg:rect", { class: "reference", x: 2.5, y: 1.5, width: 9, height: 9 }),
  dot: () => h("svg:circle", { class: "dot", cx: 7, cy: 6, r: 3 }),
  other: () => h("svg:circle", { class: "other", cx: 7, cy: 6, r: 3 }),
};

/**
 * Return {element, draw}: draw({trace, current, reference, describe, traceName}) marks points by their index.
 * `x` and `y` are {label, unit, values, low, high}; low and high may be null. `pick` is called with a clicked index.
 */
export function scatter(x, y, pick) {
  const across = scale([...x.values, ...(x.low ?? []), ...(x.high ?? [])], LEFT, WIDTH - RIGHT);
  const up = scale([...y.values, ...(y.low ?? []), ...(y.high ?? [])], HEIGHT - BOTTOM, TOP);
  const known = x.values.map((value, i) => value !== null && y.values[i] !== null);
  const name = (axis) => (axis.unit ? `${axis.label}, ${axis.unit}` : axis.label);
  const xs = ticks(across.low, across.high), ys = ticks(up.low, up.high, 4);
  const moving = h("svg:g");
  const picture = h("svg:svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" },
    ys.map((value) => h("svg:line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: up.at(value), y2: up.at(value) })),
    ys.map((value) => h("svg:text", { x: LEFT - 6, y: up.at(value) + 4, "text-anchor": "end" }, number(value, decimals(ys)))),
    xs.map((value) => h("svg:line", { class: "grid", x1: across.at(value), x2: across.at(value), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 })),
    xs.map((value) => h("svg:text", { x: across.at(value), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, number(value, decimals(xs)))),
    h("svg:text", { class: "label", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, name(x)),
    h("svg:text", { class: "label", x: 12, y: (TOP + HEIGHT - BOTTOM) / 2, "text-anchor": "middle",
      transform: `rotate(-90 12 ${(TOP + HEIGHT - BOTTOM) / 2})` }, name(y)),
    moving);
  const legend = h("p", { class: "legend" });

  const at = (i) => [across.at(x.values[i]), up.at(y.values[i])];
  const spread = (i, kind) => [
    y.low && y.low[i] !== null ? h("svg:line", { class: kind, x1: at(i)[0], x2: at(i)[0], y1: up.at(y.low[i]), y2: up.at(y.high[i]) }) : null,
    x.low && x.low[i] !== null ? h("svg:line", { class: kind, x1: across.at(x.low[i]), x2: across.at(x.high[i]), y1: at(i)[1], y2: at(i)[1] }) : null,
  ];

  function draw({ trace, current, reference, describe, traceName }) {
    const path = trace.filter((i) => known[i]), spot = (i) => at(i).map((v) => v.toFixed(1)).join(",");
    // A mean over pictures is the same for every prompt: each place is drawn once, and none below the path.
    const places = new Map(x.values.map((_, i) => i).filter((i) => known[i]).map((i) => [spot(i), i]));
    path.forEach((i) => places.delete(spot(i)));
    const rest = [...places.values()];
    moving.replaceChildren(...[
      rest.map((i) => h("svg:circle", { class: "other", cx: at(i)[0], cy: at(i)[1], r: 3 })),
      h("svg:polyline", { class: "trace", points: path.map(spot).join(" ") }),
      path.map((i) => spread(i, "spread")),
      path.map((i) => h("svg:circle", { class: "dot", cx: at(i)[0], cy: at(i)[1], r: 3 })),
      reference !== null && known[reference]
        ? h("svg:rect", { class: "reference", x: at(reference)[0] - 5.5, y: at(reference)[1] - 5.5, width: 11, height: 11 }) : null,
      known[current] ? [...spread(current, "current-spread"), h("svg:circle", { class: "current", cx: at(current)[0], cy: at(current)[1], r: 7 })] : null,
      path.map((i) => h("svg:circle", { class: "hit", cx: at(i)[0], cy: at(i)[1], r: 12, onclick: () => pick(i) })),
    ].flat(2).filter((element) => element !== null));
    picture.setAttribute("aria-label", describe);
    const key = [["current", "this stop"], reference === null ? null : ["reference", "baseline"], ["dot", `along ${traceName}`],
      rest.length ? ["other", "other stops"] : null].filter(Boolean);
    legend.replaceChildren(...key.map(([mark, text]) =>
      h("span", {}, h("svg:svg", { viewBox: "0 0 14 12", "aria-hidden": "true" }, MARKS[mark]()), text)));
  }
  return { element: h("div", { class: "chart" }, picture, legend), draw };
}
