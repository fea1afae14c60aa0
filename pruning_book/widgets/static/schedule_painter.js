// The schedule painter: switch units off at single steps; dead work turns grey and the MACs follow at once. Pictures and
// their likeness are shown where they were recorded, or drawn by a kernel; they are never guessed.
import { anywidget, choice, followHash, h, number, stage, writeHash } from "./twin.js";
import { calls, cost, fromHex, live, read, toHex, write } from "./painter_counting.js";
import { paintedGrid } from "./painter_grid.js";
import { scatter } from "./chart.js";
import { PAINTER_CSS } from "./painter_style.js";

const UNDO = 100;

export function mount(host, data, { hash = false, ask = null } = {}) {
  const { grid, stops, prompts, sheet } = data, steps = grid.steps, units = grid.names.length;
  const tables = stops.map(({ on }) => read(on));
  // Tables with the same live cells draw the same picture, bit for bit.
  const key = (alive) => write(alive).join("");
  const known = new Map(tables.map((on, i) => [key(live(on, grid)), i]).reverse());
  const full = tables[0].map((row) => row.map(() => true));
  const count = (alive, called, kind = "") => cost(alive, called, grid[`macs${kind}`], grid[`base_macs${kind}`]);
  const whole = { "": steps * (grid.macs.reduce((a, b) => a + b, 0) + grid.base_macs),
    _without_attention: steps * (grid.macs_without_attention.reduce((a, b) => a + b, 0) + grid.base_macs_without_attention) };

  let on = tables[data.start.stop].map((row) => [...row]), prompt = data.start.prompt, stop = data.start.stop;
  let alive, called, answer = null, busy = false, serial = 0, waiting = null;
  const past = [];

  const say = h("p", { class: "say" }), heard = h("p", { class: "hidden", role: "status" });
  const note = h("p", { class: "note warn", role: "status" }), badge = h("span", { class: "badge" });
  const who = choice(`${data.name}-prompt`, "Prompt", prompts, prompt, (i) => change(() => { prompt = i; }));

  // The presets, in their groups, and the name of a table that is none of them
  const groups = [...new Set(stops.map(({ group }) => group))];
  const own = h("option", { value: -1, hidden: true }, "painted by hand");
  const select = h("select", { id: `${data.name}-stop`, onchange: () => take(Number(select.value)) }, own,
    groups.map((group) => h("optgroup", { label: group }, stops.map((entry, i) => (entry.group === group ? h("option", { value: i }, entry.name) : null)))));
  const explain = h("p", { class: "note" });

  const painted = paintedGrid(data.name, grid, paint);
  const button = (text, onclick) => h("button", { type: "button", onclick }, text);
  const tools = { undo: button("Undo", undo), tidy: button("Switch dead work off", () => change(() => { on = alive.map((row) => [...row]); })) };

  const percent = (share) => `${number(100 * share, 1)}\u00a0%`;
  const giga = (value) => number(value / 1e9, 3, "G");
  const share = (kind = "") => count(alive, called, kind) / whole[kind];
  const dead = () => on.flat().filter(Boolean).length - alive.flat().filter(Boolean).length;
  const result = () => (stop < 0 ? null : stops[stop]);
  const likeness = () => (answer ? answer.ssim : (result()?.ssim[prompt] ?? null));

  function sentence() {
    const wasted = dead(), quality = likeness();
    return `${percent(share())} of the MACs in ${called.filter(Boolean).length} of ${steps} calls${
      wasted ? `; ${wasted} computed cell${wasted > 1 ? "s are" : " is"} dead work` : ""}. ${
      quality === null ? (busy ? "The picture is being drawn." : "No picture was recorded for this table.") : `SSIM of this picture ${number(quality, 3)}.`}`;
  }

  // Painting
  function paint(places, value) {
    change(() => {
      for (const [t, n] of places) {
        const cells = t < 0 ? on.map((_, s) => [s, n]).slice(1) : n < 0 ? on[t].map((_, m) => [t, m]) : [[t, n]];
        const next = value ?? !cells.every(([s, m]) => on[s][m]); // a whole row or column: on, unless all of it is on
        for (const [s, m] of cells) if (s > 0) on[s][m] = next;
        if (t === 0) note.textContent = "Step 1 computes everything: nothing can be used again yet.";
      }
    });
  }
  const take = (i) => change(() => { on = tables[i].map((row) => [...row]); }, i);
  function undo() {
    if (past.length) { on = past.pop(); change(() => {}, -1, false); }
  }

  /** Make a change of the table or the prompt, whatever asked for it, and let everything follow. */
  function change(make, wanted = -1, remember = true) {
    const before = on.map((row) => [...row]), old = asked();
    note.textContent = "";
    make();
    const changed = write(before).join() !== write(on).join();
    if (remember && changed) past.push(before);
    if (past.length > UNDO) past.shift();
    follow(wanted);
    heard.textContent = sentence();
    if (hash) writeHash(data.name, { prompt: prompts[prompt], on: toHex(on) });
    if (JSON.stringify(asked()) !== JSON.stringify(old)) {
      answer = null;
      draw();
      if (ask) { clearTimeout(waiting); waiting = setTimeout(run, 200); } // a drag is one wish
    } else draw();
  }
  const asked = () => ({ prompt: prompts[prompt], on: write(alive) });
  function follow(wanted = -1) {
    [alive, called] = [live(on, grid), null];
    called = calls(alive, grid);
    const same = key(alive);
    stop = wanted >= 0 && key(live(tables[wanted], grid)) === same ? wanted : stop >= 0 && key(live(tables[stop], grid)) === same ? stop : known.get(same) ?? -1;
  }

  // Pictures
  const image = new Image();
  const panel = (kind, name) => {
    const canvas = h("canvas", { width: sheet.width, height: sheet.height, role: "img" }), text = h("span");
    return { element: h("figure", { class: kind }, canvas, h("figcaption", {}, h("b", {}, name), text)), canvas, text, name };
  };
  const panels = { whole: panel("then", "unpruned"), now: panel("now", "this schedule") };
  function show({ element, canvas, text, name }, place, words, drawn) {
    text.textContent = words;
    const there = place >= 0 || drawn;
    canvas.setAttribute("aria-label", there ? `${data.picture}, ${prompts[prompt]}, ${name}: ${words}` : "no picture was recorded for this table");
    element.classList.toggle("missing", !there);
    const source = drawn ?? image, index = prompt * stops.length + place, pen = canvas.getContext("2d");
    pen.clearRect(0, 0, sheet.width, sheet.height);
    if (!there || !source.complete || !source.naturalWidth) return;
    const at = drawn ? [0, 0] : [(index % sheet.columns) * sheet.width, Math.floor(index / sheet.columns) * sheet.height];
    pen.drawImage(source, ...at, sheet.width, sheet.height, 0, 0, sheet.width, sheet.height);
  }

  // Numbers
  const facts = h("tbody"), all = h("tbody"), meter = h("i");
  const fact = (name, before, after, small = null) => h("tr", {}, h("th", { scope: "row" }, name, small ? h("small", {}, small) : null), h("td", {}, before), h("td", {}, after));
  const mean = (found) => (found ? `${number(found.value, 3)} (${number(found.low, 3)} to ${number(found.high, 3)})` : "not recorded");
  const shares = stops.map((_, i) => { const a = live(tables[i], grid); return count(a, calls(a, grid)) / whole[""]; });
  const column = (pick) => stops.map(({ mean: found }) => found[pick]);
  const chart = scatter({ label: "MACs kept", unit: "%", values: shares.map((v) => 100 * v) },
    { label: `mean SSIM, n = ${data.n}`, values: column("value"), low: column("low"), high: column("high") }, (i) => take(i));

  function numbers() {
    const own = result(), cells = alive.flat().filter(Boolean).length;
    facts.replaceChildren(...[
      fact("computed and used", steps * units, cells, "cells"),
      fact("dead work", 0, dead(), "cells; they are left out, so they cost nothing"),
      fact("calls of the denoiser", steps, called.filter(Boolean).length),
      fact("MACs of one sample", giga(whole[""]), giga(count(alive, called)), `with attention products; ${percent(share())} kept`),
      fact("the same, without", giga(whole._without_attention), giga(count(alive, called, "_without_attention")), `attention products; ${percent(share("_without_attention"))} kept`),
      fact("SSIM of this picture", "1.000", likeness() === null ? "not recorded" : number(likeness(), 3)),
      fact("mean SSIM", "1.000", mean(own?.mean), `n = ${data.n}, 95 % interval`),
      answer ? fact("time of this run", number(answer.whole_ms, 0, "ms"), number(answer.ms, 0, "ms"), "one picture, denoiser and decoder, here and now") : null,
    ].filter(Boolean));
    all.replaceChildren(...stops.map((entry, i) => h("tr", { "aria-current": i === stop ? "true" : null }, h("th", { scope: "row" }, entry.name),
      h("td", {}, percent(shares[i])), h("td", {}, mean(entry.mean)))));
    const group = own?.group ?? groups[0], trace = stops.map((_, i) => i).filter((i) => stops[i].group === group);
    chart.draw({ trace: trace.sort((a, b) => shares[a] - shares[b]), current: stop, reference: stop === 0 ? null : 0, traceName: `\u201c${group}\u201d`,
      describe: `Mean SSIM against the MACs kept of the ${stops.length} recorded schedules; ${own ? `now at ${own.name}` : "this table was not recorded"}` });
  }

  function draw() {
    who.set(prompt);
    select.value = stop;
    own.hidden = stop >= 0;
    explain.textContent = result()?.note ?? (ask ? "" : "Painted by hand: the MACs are exact. Pictures and their likeness exist for recorded schedules only; choose one above, or run this page with a kernel.");
    painted.draw(on, alive, called);
    say.textContent = sentence();
    meter.style.width = `${100 * share()}%`;
    show(panels.whole, 0, `${percent(1)} of MACs`);
    show(panels.now, stop, `${percent(share())} of MACs`, answer?.image);
    tools.undo.disabled = !past.length;
    tools.tidy.disabled = !dead();
    numbers();
    badge.textContent = busy ? "computing\u2026" : answer ? "live" : stop >= 0 ? "recorded" : "no picture";
    badge.toggleAttribute("data-live", Boolean(answer));
  }

  function failed(why) {
    [answer, busy] = [null, false];
    draw();
    note.textContent = `The live run failed${stop >= 0 ? ", so this is the recorded picture" : ""}. ${why}`;
  }

  async function run() {
    const mine = ++serial;
    busy = true;
    draw();
    const response = await ask(asked());
    if (!response || mine !== serial) return; // a newer request is under way
    if (response.error) return failed(response.error);
    const drawn = new Image();
    drawn.src = response.image;
    const readable = await drawn.decode().then(() => true, () => false);
    if (mine !== serial) return;
    if (!readable) return failed("Its picture could not be read.");
    answer = { ...response, image: drawn };
    busy = false;
    draw();
    heard.textContent = sentence();
  }

  /** Go to {prompt, schedule} or {prompt, on}: a recorded schedule by its name, or any table as `toHex` writes it. */
  function go(wanted) {
    const told = [], there = prompts.indexOf(wanted.prompt);
    const named = stops.findIndex(({ name }) => name === wanted.schedule);
    const table = wanted.on === undefined ? null : fromHex(wanted.on, steps, units);
    if (wanted.schedule !== undefined && named < 0) told.push(`There is no recorded schedule ${wanted.schedule}.`);
    if (wanted.on !== undefined && !table) told.push(`The address holds no table of ${steps} steps and ${units} units.`);
    change(() => {
      if (there >= 0) prompt = there;
      if (named >= 0) on = tables[named].map((row) => [...row]);
      if (table) on = [full[0], ...table.slice(1)].map((row) => [...row]);
    }, named);
    note.textContent = told.join(" ");
  }

  const scroll = (label, ...children) => h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, h("table", { class: "compact" }, children));
  const heads = (names) => h("thead", {}, h("tr", {}, names.map((text) => h("th", { scope: "col" }, text))));
  const mark = (kind, text) => h("span", {}, h("i", { class: kind }), text);
  const app = stage(host);
  app.before(h("style", {}, PAINTER_CSS));
  app.append(...[
    h("header", {}, h("span", { class: "title" }, data.title), badge),
    h("div", { class: "controls" }, h("div", { class: "wide" }, who.element),
      h("div", { class: "control wide" }, h("label", { for: select.id }, "Schedule"), select)),
    heard,
    // Nothing above the table may change its height: cells would move away under the finger.
    h("div", { class: "stage painter" },
      h("div", { class: "pictures" }, panels.whole.element, panels.now.element),
      h("div", { class: "painting" }, painted.element,
        h("p", { class: "key" }, mark("computed", "computed"), mark("reused", "used again from an earlier step"), mark("dead", "switched on, but dead work"), h("span", {}, "struck number: no call at all")),
        h("div", { class: "tools" }, tools.undo, tools.tidy)),
      h("div", {}, say, h("div", { class: "meter", "aria-hidden": "true" }, meter), note, explain),
      scroll("What this schedule costs", heads(["measured", "unpruned", "this one"]), facts)),
    h("p", { class: "note" }, "Click cells or drag over them; a unit's name or a step's number switches all of it. By keyboard: arrow keys, then the space bar. The bar behind a unit's name is its share of the MACs."),
    h("details", {}, h("summary", {}, "All recorded schedules: a chart and a table"), chart.element,
      scroll("All recorded schedules", heads(["schedule", "MACs kept", `mean SSIM, n = ${data.n}`]), all)),
    data.passport ? h("p", { class: "passport" }, data.passport) : null,
  ].filter(Boolean));

  image.onload = draw;
  image.onerror = () => { note.textContent = "The pictures could not be loaded."; };
  image.src = sheet.src;
  follow(stop);
  draw();
  if (hash) followHash(host, data.name, go);
  if (ask) run();
  return { go };
}

export default anywidget(mount);
