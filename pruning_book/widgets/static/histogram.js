// The panel of a sweep that shows weights: grey bars are all, blue bars what is kept, dashed lines the cut. Log heights.
import { h, number } from "./twin.js";

// The modules of a widget are joined into one, so names at the top of a file must be its own.
const PANEL = { width: 640, height: 220, left: 58, right: 8, top: 10, bottom: 52 };

/** Return a few round numbers from -end to end. */
function roundTicks(end) {
  const power = 10 ** Math.floor(Math.log10(end)), step = [1, 0.5, 0.2, 0.1].map((part) => part * power).find((s) => end / s >= 2) ?? power;
  const found = [];
  for (let i = -Math.floor(end / step + 1e-9); i * step <= end * (1 + 1e-9); i += 1) found.push(i * step || 0);
  return { found, digits: Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)) };
}

/** Say what is removed, as Histogram.words does in Python. */
export function histogramWords(counts, removed, cut) {
  const total = (values) => values.reduce((sum, value) => sum + value, 0);
  const gone = total(removed), n = total(counts);
  if (!gone) return "nothing is removed";
  const text = `${number(gone, 0)} of ${number(n, 0)} removed (${number((100 * gone) / n, 1)}\u00a0%)`;
  if (!cut) return `${text}, whatever their size`;
  const short = (value) => Number(value.toPrecision(3)).toString();
  return `${text}; cut at a size of ${cut[0] === cut[1] ? short(cut[0]) : `${short(cut[0])} to ${short(cut[1])}, by layer`}`;
}

/** Return {element, draw}; draw({removed, cut, where}) shows one combination of stops, `where` being its name. */
export function histogramPanel({ edges, counts, label, title }) {
  const low = edges[0], high = edges.at(-1), most = Math.max(...counts), decades = Math.log10(most + 1);
  const x = (value) => PANEL.left + ((value - low) / (high - low)) * (PANEL.width - PANEL.left - PANEL.right);
  const y = (count) => PANEL.height - PANEL.bottom - (Math.log10(count + 1) / decades) * (PANEL.height - PANEL.top - PANEL.bottom);
  const base = PANEL.height - PANEL.bottom, { found: marks, digits } = roundTicks(Math.max(-low, high));
  const powers = Array.from({ length: Math.floor(Math.log10(most)) + 1 }, (_, i) => 10 ** i);
  const bars = (values, kind) => values.map((count, i) => (count ? h("svg:rect", { class: kind, x: x(edges[i]) + 0.5, y: y(count),
    width: Math.max(1, x(edges[i + 1]) - x(edges[i]) - 1), height: base - y(count) }) : null));
  const moving = h("svg:g");
  const picture = h("svg:svg", { viewBox: `0 0 ${PANEL.width} ${PANEL.height}`, role: "img" },
    powers.map((power) => h("svg:line", { class: "grid", x1: PANEL.left, x2: PANEL.width - PANEL.right, y1: y(power), y2: y(power) })),
    powers.filter((_, i) => i % 2 === (powers.length + 1) % 2 || powers.length < 4)
      .map((power) => h("svg:text", { x: PANEL.left - 6, y: y(power) + 4, "text-anchor": "end" }, power < 1000 ? number(power, 0) : power < 1e6 ? `${power / 1000} k` : `${power / 1e6} M`)),
    bars(counts, "all"), moving,
    marks.map((value) => h("svg:text", { x: x(value), y: base + 19, "text-anchor": "middle" }, number(value, digits))),
    h("svg:text", { class: "label", x: (PANEL.left + PANEL.width - PANEL.right) / 2, y: PANEL.height - 6, "text-anchor": "middle" }, label));
  const words = h("p", { class: "note" });
  const key = [["kept", "kept"], ["all", "removed"], ["cut", "cut"]].map(([kind, text]) => h("span", {},
    h("svg:svg", { viewBox: "0 0 14 12", "aria-hidden": "true" }, kind === "cut" ? h("svg:line", { class: "cut", x1: 7, x2: 7, y1: 0, y2: 12 })
      : h("svg:rect", { class: kind, x: 2, y: 1, width: 10, height: 10 })), text));

  function draw({ removed, cut, where }) {
    const ends = cut ? [-cut[1], -cut[0], cut[0], cut[1]].map((value) => x(Math.min(high, Math.max(low, value)))) : [];
    moving.replaceChildren(...[
      cut && cut[0] < cut[1] ? [[0, 1], [2, 3]].map(([a, b]) => h("svg:rect", { class: "cuts", x: ends[a], y: PANEL.top,
        width: Math.max(0, ends[b] - ends[a]), height: base - PANEL.top })) : null,
      bars(counts.map((count, i) => count - removed[i]), "kept"),
      ends.map((at) => h("svg:line", { class: "cut", x1: at, x2: at, y1: PANEL.top, y2: base })),
    ].flat(2).filter((element) => element !== null));
    const text = histogramWords(counts, removed, cut);
    picture.setAttribute("aria-label", `${title}, ${where}: ${text}`);
    words.textContent = `${title}: ${text}. Heights count logarithmically; the outermost bars hold everything beyond.`;
  }
  return { element: h("div", { class: "histogram" }, picture, h("p", { class: "legend" }, key), words), draw };
}
