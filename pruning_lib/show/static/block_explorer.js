// The block explorer: for one model and one measure, a table whose rows are blocks and whose bars are their shares.
import { anywidget, choice, followHash, h, number, stage, writeHash } from "./twin.js";

export function mount(host, data, { hash = false } = {}) {
  const { models, measures } = data;
  const state = { model: data.start[0], measure: data.start[1] };
  const body = h("tbody"), foot = h("tfoot"), head = h("thead"), caption = h("caption");
  const say = h("p", { class: "say", role: "status" });

  const controls = {
    model: choice(`${data.name}-model`, "Model", models.map(({ label }) => label), state.model, (i) => move("model", i)),
    measure: choice(`${data.name}-measure`, "Measure", measures.map(({ label }) => label), state.measure, (i) => move("measure", i)),
  };

  function draw() {
    const model = models[state.model], measure = measures[state.measure];
    const values = model.values[measure.name] ?? null;
    controls.model.set(state.model);
    controls.measure.set(state.measure);
    caption.textContent = `${measure.label} of ${model.label} by block, in the order in which data flows`;
    const text = (value) => number(value, model.digits[measure.name] ?? 0, measure.unit);
    if (values === null) {
      head.replaceChildren(); foot.replaceChildren();
      body.replaceChildren(...model.blocks.map((block) => h("tr", {}, h("th", { scope: "row" }, block), h("td", { class: "absent" }, "not measured"))));
      say.textContent = `${measure.label} of ${model.label}: not measured. ${model.why[measure.name] ?? ""}`;
      return;
    }
    const known = values.filter((value) => value !== null), total = known.reduce((sum, value) => sum + value, 0);
    const most = Math.max(...known), largest = values.indexOf(most);
    // Peaks of memory do not add up, so they have no shares and no sum.
    const share = (value) => (measure.additive ? `${number((100 * value) / total, 1)}\u00a0%` : "");
    head.replaceChildren(h("tr", {}, h("th", { scope: "col" }, "block"), h("th", { scope: "col", colspan: 2 }, measure.additive ? "share" : ""),
      h("th", { scope: "col" }, measure.label)));
    body.replaceChildren(...model.blocks.map((block, i) => (values[i] === null
      ? h("tr", {}, h("th", { scope: "row" }, block), h("td", { class: "absent", colspan: 3 }, "not measured"))
      : h("tr", { "aria-current": i === largest ? "true" : null }, h("th", { scope: "row" }, block),
        h("td", { class: "bar", "aria-hidden": "true" }, h("i", { style: `width:${(100 * values[i]) / most}%` })),
        h("td", {}, share(values[i])), h("td", {}, text(values[i]))))));
    foot.replaceChildren(...(measure.additive ? [h("tr", {}, h("th", { scope: "row" }, "sum"), h("td"), h("td"), h("td", {}, text(total)))] : []));
    say.textContent = `${model.label}, ${measure.label}: ${model.blocks[largest]} has most, ${measure.additive ? `${share(most)} of ${text(total)}` : text(most)}.`;
  }

  function move(what, index) {
    state[what] = index;
    draw();
    if (hash) writeHash(data.name, { model: models[state.model].label, measure: measures[state.measure].name });
  }

  function go(wanted) {
    const model = models.findIndex(({ label }) => label === wanted.model), measure = measures.findIndex(({ name }) => name === wanted.measure);
    if (model >= 0) state.model = model;
    if (measure >= 0) state.measure = measure;
    draw();
  }

  const app = stage(host);
  app.append(...[
    h("header", {}, h("span", { class: "title" }, data.title)),
    h("div", { class: "controls" }, h("div", { class: "wide" }, controls.model.element), h("div", { class: "wide" }, controls.measure.element)),
    say, h("table", { class: "bars" }, caption, head, body, foot),
    data.passport ? h("p", { class: "passport" }, data.passport) : null,
  ].filter(Boolean));
  draw();
  if (hash) followHash(host, data.name, go);
  return { go };
}

export default anywidget(mount);
