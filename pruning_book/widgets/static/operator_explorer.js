// The operator explorer: a drawn denoiser; take one operator away, or the lowest-scored together, and see the picture.
import { anywidget, choice, followHash, h, number, stage, writeHash } from "./twin.js";
import { operatorDrawing } from "./operator_drawing.js";

export function mount(host, data, { hash = false, ask = null } = {}) {
  const { operators, stops, prompts, sheet, map, measures } = data;
  const grainOf = (operator) => map.grains.findIndex((cells) => cells.some(([i]) => i === operator));
  // One thing is removed at a time: an operator, or what a stop of the ratio slider names.
  const state = { prompt: data.start.prompt, operator: data.start.operator, stop: data.start.stop, one: true, grain: grainOf(data.start.operator), measure: 0 };
  let answer = null, busy = false, serial = 0;

  const say = h("p", { class: "say" }), heard = h("p", { class: "hidden", role: "status" });
  const note = h("p", { class: "note warn", role: "status" }), badge = h("span", { class: "badge" });
  const controls = {
    prompt: choice(`${data.name}-prompt`, "Prompt", prompts, state.prompt, (i) => set({ prompt: i }, true)),
    grain: choice(`${data.name}-grain`, "Show", data.grains, state.grain, (i) => set({ grain: i, operator: settled(i) }, true)),
    measure: choice(`${data.name}-measure`, "Cells are filled by", measures.map(({ label }) => label), state.measure, (i) => set({ measure: i }, true)),
  };

  /** Return {element, input, shown}: a slider with its label and the words of where it stands. */
  function slider(id, label, onmove) {
    const input = h("input", { type: "range", id: `${data.name}-${id}`, min: 0, step: 1, oninput: () => onmove(Number(input.value)) });
    const shown = h("output", { for: input.id });
    return { element: h("div", { class: "control wide" }, h("label", { for: input.id }, h("span", {}, label), shown), input), input, shown };
  }
  const one = slider("operator", "Without one operator", (i) => set({ operator: map.grains[state.grain][i][0], one: true }));
  const many = slider("ratio", "Without the lowest-scored", (i) => set({ stop: i, one: false }));
  many.input.max = stops.length - 1;

  /** Return the operator that stands for the chosen one in another grain: itself, the one around it, or the first inside it. */
  function settled(grain) {
    const there = map.grains[grain].map(([operator]) => operator), path = operators[state.operator].path;
    if (there.includes(state.operator)) return state.operator;
    return there.find((i) => path.startsWith(`${operators[i].path}.`)) ?? there.find((i) => operators[i].path.startsWith(`${path}.`)) ?? there[0];
  }

  const percent = (share) => `${number(100 * share, 1)}\u00a0%`;
  const millions = (value) => number(value / 1e6, 2, "M");
  const score = (value) => (value === null ? "not finite" : Number(value.toPrecision(3)).toString());
  const removed = () => (state.one ? [state.operator] : stops[state.stop].removed);
  const result = () => (state.one ? operators[state.operator] : stops[state.stop]);
  const picture = () => (answer ? answer.ssim : result().ssim[state.prompt]);
  const asked = () => ({ prompt: prompts[state.prompt], ...(state.one ? { operator: operators[state.operator].path } : { ratio: stops[state.stop].ratio }) });

  function sentence() {
    const similar = `SSIM of this picture ${number(picture(), 3)}`;
    if (state.one) {
      const { path, kind, rank, saved } = operators[state.operator];
      return `Without ${path} (${kind}): score ${score(operators[state.operator].score)}, rank ${rank} of ${operators.length}; ${similar}; ${percent(saved.macs / data.whole.macs)} of the MACs and ${percent(saved.params / data.whole.params)} of the parameters are saved.`;
    }
    const { count, macs, params } = stops[state.stop];
    if (!count) return "Nothing is removed.";
    return `Without the ${count} lowest-scored operators: ${percent(1 - macs / data.whole.macs)} of the MACs and ${percent(1 - params / data.whole.params)} of the parameters are gone; ${similar}.`;
  }

  // Pictures
  const image = new Image();
  const panel = (kind, name) => {
    const canvas = h("canvas", { width: sheet.width, height: sheet.height, role: "img" }), text = h("span");
    return { element: h("figure", { class: kind }, canvas, h("figcaption", {}, h("b", {}, name), text)), canvas, text, name };
  };
  const panels = { whole: panel("then", "unpruned"), now: panel("now", "without it") };

  function paint({ canvas, text, name }, place, words, own) {
    text.textContent = words;
    canvas.setAttribute("aria-label", `${data.picture}, ${prompts[state.prompt]}, ${name}: ${words}`);
    const source = own ?? image, index = state.prompt * (stops.length + operators.length) + place;
    if (!source.complete || !source.naturalWidth) return;
    const at = own ? [0, 0] : [(index % sheet.columns) * sheet.width, Math.floor(index / sheet.columns) * sheet.height];
    const draw = canvas.getContext("2d");
    draw.clearRect(0, 0, sheet.width, sheet.height);
    draw.drawImage(source, ...at, sheet.width, sheet.height, 0, 0, sheet.width, sheet.height);
  }

  // The drawing and the numbers
  const drawn = operatorDrawing(data.name, map, (operator) => set({ operator, one: true }, true));
  const facts = { caption: h("caption"), body: h("tbody") }, all = { caption: h("caption"), head: h("thead"), body: h("tbody") };

  const fact = (name, before, after, small = null) => h("tr", {}, h("th", { scope: "row" }, name, small ? h("small", {}, small) : null),
    h("td", {}, before), h("td", {}, after));
  const mean = ({ mean: found }) => (found ? `${number(found.value, 3)} (${number(found.low, 3)} to ${number(found.high, 3)})` : "not measured");

  function numbers() {
    const { whole } = data, found = result();
    const sizes = state.one ? { params: whole.params - found.saved.params, macs: whole.macs - found.saved.macs } : { params: found.params, macs: found.macs };
    facts.caption.textContent = state.one ? operators[state.operator].path : `${found.count} operators removed`;
    facts.body.replaceChildren(...[
      state.one ? fact("kind", "", found.kind) : null,
      state.one ? fact("what is done to it", "", found.how, data.modifications[found.how]) : null,
      state.one ? fact("stream in, out", "", `${found.shapes[0]}, ${found.shapes[1]}`) : null,
      state.one ? fact("score", "", score(found.score), "average part + spread part") : null,
      state.one && found.score !== null ? fact("its parts", "", `${score(found.avg)} + ${score(found.std)}`) : null,
      state.one ? fact("rank", "", `${found.rank} of ${operators.length}`, "1 is the lowest score") : null,
      fact("SSIM of this picture", "1.000", h("span", {}, number(picture(), 3), answer ? h("small", {}, `recorded: ${number(found.ssim[state.prompt], 3)}`) : null)),
      fact("mean SSIM", "1.000", mean(found), `n = ${data.n}, 95 % interval`),
      fact("parameters", millions(whole.params), millions(sizes.params)),
      fact("MACs of a call", millions(whole.macs), millions(sizes.macs), "with attention products"),
    ].filter(Boolean));
    const rows = state.one ? order : stops.map((_, i) => i);
    all.caption.textContent = state.one ? "All operators, the lowest score first" : "All stops of the ratio slider";
    const heads = state.one ? ["operator", "score", "mean SSIM", "MACs saved"] : ["operators removed", "MACs removed", "parameters removed", "mean SSIM"];
    all.head.replaceChildren(h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text))));
    all.body.replaceChildren(...rows.map((i) => (state.one
      ? h("tr", { "aria-current": i === state.operator ? "true" : null }, h("th", { scope: "row" }, broken(operators[i].path)), h("td", {}, score(operators[i].score)),
        h("td", {}, number(operators[i].mean?.value ?? null, 3)), h("td", {}, millions(operators[i].saved.macs)))
      : h("tr", { "aria-current": i === state.stop ? "true" : null }, h("th", { scope: "row" }, stops[i].count),
        h("td", {}, percent(1 - stops[i].macs / whole.macs)), h("td", {}, percent(1 - stops[i].params / whole.params)), h("td", {}, mean(stops[i]))))));
  }
  const order = operators.map((_, i) => i).sort((a, b) => operators[a].rank - operators[b].rank);
  // Names break after dots and underscores, not in the middle of a word.
  const broken = (name) => name.split(/(?<=[._])/).flatMap((part) => [h("wbr"), part]).slice(1);

  function draw() {
    const lost = removed().map((i) => operators[i].path), words = sentence(), cells = map.grains[state.grain];
    for (const [name, control] of Object.entries(controls)) control.set(state[name]);
    one.input.max = cells.length - 1;
    one.input.value = cells.findIndex(([operator]) => operator === state.operator);
    one.shown.textContent = operators[state.operator].path;
    many.input.value = state.stop;
    many.shown.textContent = `${percent(1 - stops[state.stop].macs / data.whole.macs)} of the MACs, ${stops[state.stop].count} operators`;
    // A slider speaks what it says about itself; only the one that acts speaks the result.
    one.input.setAttribute("aria-valuetext", state.one ? words : operators[state.operator].path);
    many.input.setAttribute("aria-valuetext", state.one ? many.shown.textContent : words);
    for (const [control, acts] of [[one, state.one], [many, !state.one]]) control.element.toggleAttribute("data-idle", !acts);
    say.textContent = words;
    paint(panels.whole, 0, "all operators");
    paint(panels.now, state.one ? stops.length + state.operator : state.stop,
      state.one ? `${operators[state.operator].kind}, rank ${operators[state.operator].rank}` : `${stops[state.stop].count} operators removed`, answer?.image);
    drawn.draw({
      grain: state.grain, current: state.operator, fill: measures[state.measure].fill,
      gone: operators.map(({ path }) => lost.some((other) => path === other || path.startsWith(`${other}.`))),
      // What is written in a cell is part of its name, for those who speak to their computer.
      describe: (i, label) => `${!label || operators[i].kind.split(" ").includes(label) ? "" : `${label}: `}${operators[i].path}, ${operators[i].kind}, ${
        measures[state.measure].label} ${measures[state.measure].texts[i]}`,
      title: `The operators of ${data.model}, each filled by its ${measures[state.measure].label}`,
    });
    numbers();
    badge.textContent = busy ? "computing\u2026" : answer ? "live: computed just now" : "recorded";
    badge.toggleAttribute("data-live", Boolean(answer));
  }

  // One change, whatever made it
  function set(changes, loud = false) {
    const before = JSON.stringify(asked());
    Object.assign(state, changes);
    const moved = JSON.stringify(asked()) !== before; // else only the drawing changes, and the picture stays
    if (moved) answer = null;
    note.textContent = "";
    draw();
    heard.textContent = loud ? sentence() : "";
    if (hash) writeHash(data.name, asked());
    if (ask && moved) live();
  }

  function failed(why) {
    answer = null;
    busy = false;
    draw();
    note.textContent = `The live run failed, so this is the recorded picture. ${why}`;
  }

  async function live() {
    const mine = ++serial;
    busy = true;
    draw();
    const response = await ask(asked());
    if (!response || mine !== serial) return; // a newer request is under way
    if (response.error) return failed(response.error);
    const shown = new Image();
    shown.src = response.image;
    const readable = await shown.decode().then(() => true, () => false);
    if (mine !== serial) return;
    if (!readable) return failed("Its picture could not be read.");
    answer = { ssim: response.ssim, image: shown };
    busy = false;
    draw();
  }

  /** Go to {prompt, operator} or {prompt, ratio}; a ratio goes to the nearest recorded stop. */
  function go(wanted) {
    const prompt = prompts.indexOf(wanted.prompt), operator = operators.findIndex(({ path }) => path === wanted.operator);
    const changes = prompt >= 0 ? { prompt } : {}, told = [];
    if (operator >= 0) {
      Object.assign(changes, { operator, grain: grainOf(operator), one: true });
    } else if (wanted.operator !== undefined) told.push(`There is no operator ${wanted.operator} here.`);
    if (wanted.ratio !== undefined && Number.isFinite(Number(wanted.ratio))) {
      const far = stops.map(({ ratio }) => Math.abs(ratio - Number(wanted.ratio))), stop = far.indexOf(Math.min(...far));
      if (far[stop] > 1e-9) told.push(`Ratio ${wanted.ratio} was not recorded; showing ${stops[stop].ratio}.`);
      Object.assign(changes, { stop, one: false });
    }
    set(changes);
    note.textContent = told.join(" ");
  }

  const scroll = (label, kind, ...children) => h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, h("table", { class: kind }, children));
  const app = stage(host);
  app.append(...[
    h("header", {}, h("span", { class: "title" }, data.title), badge),
    h("div", { class: "controls" }, h("div", { class: "wide" }, controls.prompt.element), one.element, many.element),
    note, heard, say,
    h("div", { class: "stage top operators" },
      h("div", { class: "pictures" }, panels.whole.element, panels.now.element),
      h("div", { class: "map" }, h("div", { class: "controls" }, controls.grain.element, controls.measure.element),
        drawn.element, h("p", { class: "note" }, "A fuller cell has a higher value; scores are drawn logarithmically. A struck cell is removed. Choose a cell by mouse or touch, or walk with the arrow keys.")),
      scroll("What was measured", "compact", facts.caption,
        h("thead", {}, h("tr", {}, ["measured", "unpruned", "without it"].map((text) => h("th", { scope: "col" }, text)))), facts.body)),
    h("details", {}, h("summary", {}, "All of them as a table"), scroll("All operators, or all stops", "compact", all.caption, all.head, all.body)),
    h("p", { class: "note" }, "Every stop and every picture was recorded; nothing in between is made up."),
    data.passport ? h("p", { class: "passport" }, data.passport) : null,
  ].filter(Boolean));

  image.onload = draw;
  image.onerror = () => { note.textContent = "The pictures could not be loaded."; };
  image.src = sheet.src;
  draw();
  if (hash) followHash(host, data.name, go);
  if (ask) live();
  return { go };
}

export default anywidget(mount);
