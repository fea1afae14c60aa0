// The block explorer: a drawn denoiser; choose a model, a measure and a block, and see its share, in every model.
import { anywidget, choice, followHash, h, number, stage, writeHash } from "./twin.js";
import { drawing } from "./block_drawing.js";

export function mount(host, data, { hash = false } = {}) {
  const { models, measures } = data;
  const state = { model: data.start[0], measure: data.start[1], block: data.start[2] };
  const say = h("p", { class: "say" }), heard = h("p", { class: "hidden", role: "status" }), notes = h("p", { class: "note" });
  const id = `${data.name}-block`;
  const range = h("input", { type: "range", id, min: 0, step: 1, oninput: () => move("block", Number(range.value)) });
  const shown = h("output", { for: id });
  const controls = {
    model: choice(`${data.name}-model`, "Model", models.map(({ label }) => label), state.model, (i) => move("model", i, true)),
    measure: choice(`${data.name}-measure`, "Measure", measures.map(({ label }) => label), state.measure, (i) => move("measure", i, true)),
  };
  const picture = drawing((i) => move("block", i));
  const beside = { caption: h("caption"), body: h("tbody") }, all = { caption: h("caption"), head: h("thead"), body: h("tbody"), foot: h("tfoot") };

  // Names break after dots and underscores, not in the middle of a word.
  const broken = (name) => name.split(/(?<=[._])/).flatMap((part) => [h("wbr"), part]).slice(1);

  /** What one block of one model costs, ready to be shown; null where it was not measured. */
  function cost(model, measure, block) {
    const values = model.values[measure.name], value = values?.[block] ?? null;
    if (value === null) return null;
    const sum = model.sums[measure.name], digits = model.digits[measure.name], ends = model.spread[measure.name]?.[block];
    return {
      text: number(value, digits, measure.unit), whole: number(sum, digits, measure.unit),
      // Peaks of memory do not add up, so they have no shares and no sum.
      share: measure.additive ? `${number((100 * value) / sum, 1)}\u00a0%` : null,
      fill: value / Math.max(...values), spread: ends ? `${number(ends[0], digits)} to ${number(ends[1], digits)}` : null,
    };
  }

  function sentence() {
    const model = models[state.model], measure = measures[state.measure], found = cost(model, measure, state.block);
    const name = `${model.label}, ${model.blocks[state.block]}`;
    if (found === null) return `${name}: ${measure.label} not measured.`;
    return found.share ? `${name}: ${found.share} of the ${measure.label}, ${found.text} of ${found.whole}.` : `${name}: ${measure.label} ${found.text}.`;
  }

  function cell(found, absent) {
    if (found === null) return h("td", { class: "absent" }, absent);
    return h("td", {}, found.share ?? found.text, found.share ? h("small", {}, found.text) : null, found.spread ? h("small", {}, found.spread) : null);
  }

  function draw() {
    const model = models[state.model], measure = measures[state.measure], block = model.blocks[state.block];
    const costs = model.blocks.map((_, i) => cost(model, measure, i));
    controls.model.set(state.model);
    controls.measure.set(state.measure);
    range.max = model.blocks.length - 1;
    range.value = state.block;
    shown.textContent = block;
    range.setAttribute("aria-valuetext", sentence());
    say.textContent = sentence();
    notes.textContent = model.notes[measure.name] ?? "";
    picture.draw({
      blocks: model.blocks, current: state.block, fill: costs.map((found) => found?.fill ?? 0),
      texts: costs.map((found) => found?.share ?? found?.text ?? ""),
      describe: `The ${model.blocks.length} blocks of ${model.label}, each filled by its ${measure.label}. ${sentence()}`,
    });

    beside.caption.textContent = `${block}: its share in each model`;
    beside.body.replaceChildren(...measures.map((row, k) => h("tr", { "aria-current": k === state.measure ? "true" : null },
      h("th", { scope: "row" }, row.label),
      models.map((other) => {
        const i = other.blocks.indexOf(block);
        return i < 0 ? h("td", { class: "absent" }, h("span", { "aria-hidden": "true" }, "\u2013"), h("span", { class: "hidden" }, "no such block")) : cell(cost(other, row, i), "not measured");
      }))));

    all.caption.textContent = `${measure.label} of ${model.label}, in the order in which data flows`;
    all.head.replaceChildren(h("tr", {}, ["block", "", measure.additive ? "share" : "", measure.label].map((text) =>
      (text ? h("th", { scope: "col" }, text) : h("td")))));
    all.body.replaceChildren(...costs.map((found, i) => h("tr", { "aria-current": i === state.block ? "true" : null },
      h("th", { scope: "row" }, broken(model.blocks[i])),
      found ? [h("td", { class: "bar", "aria-hidden": "true" }, h("i", { style: `width:${100 * found.fill}%` })), h("td", {}, found.share ?? ""),
        h("td", {}, found.text)] : [h("td", { class: "absent", colspan: 3 }, "not measured")])));
    const sum = model.sums[measure.name];
    all.foot.replaceChildren(...(measure.additive && sum !== undefined ? [h("tr", {}, h("th", { scope: "row" }, "sum"), h("td"), h("td"),
      h("td", {}, number(sum, model.digits[measure.name], measure.unit)))] : []));
  }

  /** Keep the block's name when the model changes; a model without it shows its largest block. */
  function settle(name) {
    const { blocks, values } = models[state.model], same = blocks.indexOf(name);
    const known = values[measures[state.measure].name] ?? Object.values(values)[0];
    state.block = same >= 0 ? same : known.indexOf(Math.max(...known));
  }

  function move(what, index, loud = false) {
    const name = models[state.model].blocks[state.block];
    state[what] = index;
    if (what === "model") settle(name);
    draw();
    heard.textContent = loud ? sentence() : "";
    if (hash) {
      const { label, blocks } = models[state.model];
      writeHash(data.name, { model: label, measure: measures[state.measure].name, block: blocks[state.block] });
    }
  }

  function go(wanted) {
    const model = models.findIndex(({ label }) => label === wanted.model), measure = measures.findIndex(({ name }) => name === wanted.measure);
    const name = wanted.block ?? models[state.model].blocks[state.block];
    if (model >= 0) state.model = model;
    if (measure >= 0) state.measure = measure;
    settle(name);
    draw();
  }

  const scroll = (label, kind, ...children) => h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
    h("table", { class: kind }, children));
  const app = stage(host);
  app.append(...[
    h("header", {}, h("span", { class: "title" }, data.title)),
    h("div", { class: "controls" },
      h("div", { class: "wide" }, controls.model.element), h("div", { class: "wide" }, controls.measure.element),
      h("div", { class: "control wide" }, h("label", { for: id }, h("span", {}, "Block"), shown), range)),
    heard, say, notes,
    h("div", { class: "stage top" }, picture.element,
      scroll("The chosen block in each model", "compact", beside.caption,
        h("thead", {}, h("tr", {}, ["measure", ...models.map(({ label }) => label)].map((text) => h("th", { scope: "col" }, text)))), beside.body)),
    h("details", {}, h("summary", {}, "All blocks of this model as a table"),
      scroll("All blocks of this model", "bars", all.caption, all.head, all.body, all.foot)),
    data.passport ? h("p", { class: "passport" }, data.passport) : null,
  ].filter(Boolean));
  draw();
  if (hash) followHash(host, data.name, go);
  return { go };
}

export default anywidget(mount);
