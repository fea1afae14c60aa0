// The sweep explorer: sliders over recorded stops; pictures, numbers and a chart that follow. It computes no number.
import { anywidget, choice, followHash, h, number, stage, writeHash } from "./twin.js";
import { scatter } from "./chart.js";
import { histogramPanel } from "./histogram.js";

export function mount(host, data, { hash = false, ask = null } = {}) {
  const { axes, metrics, sheet } = data;
  const strides = axes.map((_, k) => axes.slice(k + 1).reduce((product, axis) => product * axis.stops.length, 1));
  const flat = (state) => state.reduce((sum, stop, k) => sum + stop * strides[k], 0);
  const ordered = axes.map((_, k) => k).filter((k) => axes[k].kind === "ordered" && axes[k].stops.length > 1);
  const state = [...data.start];
  let along = ordered[0] ?? 0, answer = null, busy = false, serial = 0;

  const phrase = (stops, which = axes.keys()) => [...which].map((k) => axes[k].phrases[stops[k]]).join(", ");
  const reference = (stops) => data.baseline && stops.map((stop, k) => data.baseline[k] ?? stop);
  const value = (metric, index) => (answer && index === flat(state) && metric.name in answer.metrics
    ? { value: answer.metrics[metric.name], low: null, high: null, n: null, live: true }
    : { value: metric.values[index], low: metric.low?.[index] ?? null, high: metric.high?.[index] ?? null, n: metric.n?.[index] ?? null });
  const spoken = (index) => metrics.map((metric) => `${metric.label} ${number(value(metric, index).value, metric.digits, metric.unit)}`).join(", ");

  // Controls
  const say = h("p", { class: "say" });
  const note = h("p", { class: "note warn", role: "status" });
  // A slider speaks its result by aria-valuetext; what radio buttons and selects change is spoken from here.
  const heard = h("p", { class: "hidden", role: "status" });
  const badge = h("span", { class: "badge" });
  const controls = axes.map((axis, k) => (axis.stops.length < 2 ? null : axis.kind === "ordered" ? slider(axis, k)
    : choice(`${data.name}-${axis.name}`, axis.label, axis.labels, state[k], (stop) => move(k, stop, true))));

  function slider(axis, k) {
    const id = `${data.name}-${axis.name}`, last = axis.stops.length - 1;
    const input = h("input", { type: "range", id, min: 0, max: last, step: 1, value: state[k], oninput: () => move(k, Number(input.value)) });
    const shown = h("output", { for: id });
    const marks = axis.labels.map((label, i) => h("span", {}, last < 12 || i % Math.ceil(last / 10) === 0 ? label : ""));
    const element = h("div", { class: last > 6 ? "control wide" : "control" }, h("label", { for: id }, h("span", {}, axis.label), shown),
      input, h("div", { class: "stops", "aria-hidden": "true" }, marks));
    const set = (stop) => {
      input.value = stop;
      shown.textContent = axis.labels[stop] + (axis.unit ? ` ${axis.unit}` : "");
      input.setAttribute("aria-valuetext", `${axis.phrases[stop]}: ${spoken(flat(state))}`);
    };
    return { element, set };
  }

  // Pictures
  const image = new Image();
  const panel = (kind, name) => {
    const canvas = h("canvas", { width: sheet.width, height: sheet.height, role: "img" });
    const caption = h("figcaption", {}, h("b", {}, name), h("span"));
    return { element: h("figure", { class: kind }, canvas, caption), canvas, text: caption.lastChild, name };
  };
  const panels = [data.baseline ? panel("then", "baseline") : null, panel("now", "this stop")].filter(Boolean);

  function paint(panel, stops, words) {
    panel.text.textContent = words;
    panel.canvas.setAttribute("aria-label", `${data.picture}, ${panel.name}: ${phrase(stops)}`);
    const own = answer?.image && panel === panels.at(-1);
    const source = own ? answer.image : image, index = flat(stops);
    if (!source.complete || !source.naturalWidth) return;
    const at = own ? [0, 0] : [(index % sheet.columns) * sheet.width, Math.floor(index / sheet.columns) * sheet.height];
    const draw = panel.canvas.getContext("2d");
    draw.imageSmoothingEnabled = false;
    draw.clearRect(0, 0, sheet.width, sheet.height);
    draw.drawImage(source, ...at, sheet.width, sheet.height, 0, 0, sheet.width, sheet.height);
  }

  // Numbers
  const chart = data.chart && scatter(column(data.chart.x), column(data.chart.y), (index) => {
    state.forEach((_, k) => { state[k] = Math.floor(index / strides[k]) % axes[k].stops.length; });
    changed();
  });
  const weights = data.histogram && histogramPanel(data.histogram);
  const place = (stops) => data.histogram.places.reduce((sum, k) => sum * axes[k].stops.length + stops[k], 0);
  const body = h("tbody"), path = h("tbody"), pathName = h("caption"), pathHead = h("th", { scope: "col" });

  function column(name) {
    const metric = metrics.find((candidate) => candidate.name === name);
    if (metric) return metric;
    const k = axes.findIndex((axis) => axis.name === name);
    const values = metrics[0].values.map((_, i) => axes[k].stops[Math.floor(i / strides[k]) % axes[k].stops.length]);
    return { label: axes[k].label, unit: axes[k].unit, values, low: null, high: null };
  }

  function cell(metric, index) {
    const { value: main, low, high, live: now } = value(metric, index);
    const between = now ? h("small", {}, `recorded: ${number(metric.values[index], metric.digits)}`)
      : low === null || high === null ? null : h("small", {}, `${number(low, metric.digits)} to ${number(high, metric.digits)}`);
    return h("td", { class: main === null ? "absent" : null }, number(main, metric.digits, metric.unit), between);
  }

  function table(index, base) {
    body.replaceChildren(...metrics.map((metric) => {
      const n = value(metric, index).n, known = [n === null ? null : `n = ${n}`, metric.interval].filter(Boolean).join(", ");
      return h("tr", {}, h("th", { scope: "row" }, metric.label, known ? h("small", {}, known) : null),
        base === null ? null : cell(metric, base), cell(metric, index));
    }));
    pathName.textContent = `Along ${axes[along].label.toLowerCase()}, ${phrase(state, [...axes.keys()].filter((k) => k !== along)) || "all stops"}`;
    pathHead.textContent = axes[along].label;
    path.replaceChildren(...axes[along].stops.map((_, stop) => {
      const stops = state.with(along, stop);
      return h("tr", { "aria-current": stop === state[along] ? "true" : null },
        h("th", { scope: "row" }, axes[along].labels[stop]), metrics.map((metric) => cell(metric, flat(stops))));
    }));
  }

  // One change, whatever made it
  function move(k, stop, loud = false) {
    state[k] = stop;
    if (ordered.includes(k)) along = k;
    changed();
    heard.textContent = loud ? say.textContent : "";
  }

  function changed(warning = "") {
    answer = null;
    note.textContent = warning;
    draw();
    if (hash) writeHash(data.name, Object.fromEntries(axes.map((axis, k) => [axis.name, axis.stops[state[k]]])));
    if (ask) live();
  }

  function draw() {
    const index = flat(state), base = reference(state);
    controls.forEach((control, k) => control?.set(state[k]));
    if (base) paint(panels[0], base, phrase(base));
    paint(panels.at(-1), state, phrase(state));
    say.textContent = `${phrase(state)}: ${spoken(index)}.`;
    table(index, base && flat(base));
    chart?.draw({
      trace: axes[along].stops.map((_, stop) => flat(state.with(along, stop))), current: index, reference: base && flat(base),
      traceName: axes[along].label.toLowerCase(),
      describe: `${column(data.chart.y).label} against ${column(data.chart.x).label}; now at ${phrase(state)}: ${spoken(index)}`,
    });
    weights?.draw({ removed: data.histogram.removed[place(state)], cut: data.histogram.cuts[place(state)],
      where: phrase(state, data.histogram.places), ...answer?.histogram });
    badge.textContent = busy ? "computing\u2026" : answer ? "live: computed just now" : "recorded";
    badge.toggleAttribute("data-live", Boolean(answer));
  }

  function failed(why) {
    answer = null;
    busy = false;
    draw();
    note.textContent = `The live run failed, so this is the recorded stop. ${why}`;
  }

  async function live() {
    const mine = ++serial;
    busy = true;
    draw();
    const response = await ask(Object.fromEntries(axes.map((axis, k) => [axis.name, axis.stops[state[k]]])));
    if (!response || mine !== serial) return; // a newer request is under way
    if (response.error) return failed(response.error);
    let picture = null;
    if (response.image) {
      picture = new Image();
      picture.src = response.image;
      const readable = await picture.decode().then(() => true, () => false);
      if (mine !== serial) return;
      if (!readable) return failed("Its picture could not be read.");
    }
    answer = { metrics: response.metrics ?? {}, image: picture, histogram: response.histogram };
    busy = false;
    draw();
  }

  /** Go to the stops nearest to {axis: text}; say so where one was not measured. */
  function go(wanted) {
    const told = [];
    for (const [name, text] of Object.entries(wanted)) {
      const k = axes.findIndex((axis) => axis.name === name);
      if (k < 0) continue;
      const exact = axes[k].stops.findIndex((stop, i) => String(stop) === text || axes[k].labels[i] === text);
      const asked = Number(text), numeric = axes[k].stops.every((stop) => typeof stop === "number") && text.trim() !== "" && !Number.isNaN(asked);
      const equal = exact >= 0 ? exact : numeric ? axes[k].stops.indexOf(asked) : -1;
      if (equal >= 0) state[k] = equal;
      else if (numeric) state[k] = axes[k].stops.reduce((best, stop, i) => (Math.abs(stop - asked) < Math.abs(axes[k].stops[best] - asked) ? i : best), 0);
      if (equal < 0) told.push(`${axes[k].label} ${text} was not measured; showing ${axes[k].labels[state[k]]}.`);
      if (ordered.includes(k)) along = k;
    }
    changed(told.join(" "));
  }

  const app = stage(host);
  const heads = (names) => h("thead", {}, h("tr", {}, names.filter(Boolean).map((name) => h("th", { scope: "col" }, name))));
  app.append(...[
    h("header", {}, h("span", { class: "title" }, data.title), badge),
    h("div", { class: "controls" }, controls.map((control) => control?.element)),
    note, heard, say,
    h("div", { class: "stage" }, h("div", { class: "pictures" }, panels.map(({ element }) => element)), chart?.element),
    weights?.element,
    h("table", {}, heads(["measured", data.baseline ? "baseline" : null, "this stop"]), body),
    h("details", {}, h("summary", {}, "All stops of this slider as a table"),
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Measured values at each stop" },
        h("table", {}, pathName, h("thead", {}, h("tr", {}, pathHead, metrics.map(({ label }) => h("th", { scope: "col" }, label)))), path))),
    ordered.length ? h("p", { class: "note" }, "The sliders stop only where something was measured.") : null,
    data.passport ? h("p", { class: "passport" }, data.passport) : null,
  ].filter(Boolean));

  image.onload = draw;
  image.onerror = () => { note.textContent = `The pictures could not be loaded from ${image.src.slice(0, 200)}.`; };
  image.src = sheet.site ? new URL((document.documentElement.dataset.content_root ?? "") + sheet.src, document.baseURI) : sheet.src;
  draw();
  if (hash) followHash(host, data.name, go);
  if (ask) live();
  return { go };
}

export default anywidget(mount);
