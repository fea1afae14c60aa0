// The table that is painted: one row a unit, one column a step; a click, a drag, or the arrow keys and the space bar.
import { h } from "./twin.js";

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/**
 * Return {element, draw}. `grid` holds names, labels, blocks (a number per unit, the same within a block) and steps.
 * `paint(cells, value)` is called with [[step, unit], …]; step -1 stands for a whole row and unit -1 for a whole column.
 */
export function paintedGrid(name, grid, paint) {
  const units = grid.names.length, steps = grid.steps;
  let cursor = [0, 1], on = [], start = null, dragged = false; // the cursor is [unit, step]; -1 are the headers
  const where = ([unit, step]) => (unit < 0 ? heads[step] : step < 0 ? sides[unit] : cells[unit][step]);

  const heads = Array.from({ length: steps }, (_, t) => h("th", { role: "columnheader", scope: "col", tabindex: -1, onclick: () => choose(-1, t) }, `${t + 1}`));
  const sides = grid.names.map((_, n) => h("th", { role: "rowheader", scope: "row", tabindex: -1, onclick: () => choose(n, -1) },
    h("span", {}, grid.labels[n])));
  const cells = grid.names.map((_, n) => Array.from({ length: steps }, (_, t) => h("td", {
    role: "gridcell", tabindex: -1, id: `${name}-cell-${t}-${n}`, onclick: () => choose(n, t),
    onpointerdown: (event) => { // what moves on from here paints with the value that this cell would take
      event.target.releasePointerCapture?.(event.pointerId);
      [start, dragged] = [{ cell: [t, n], value: !on[t][n] }, false];
    },
    onpointerenter: (event) => {
      if (!start || !event.buttons) return;
      paint([start.cell, [t, n]], start.value);
      dragged = true;
    },
  })));

  const table = h("table", { class: "paint", role: "grid", "aria-multiselectable": "true", "aria-label": "The schedule: units by steps", onkeydown: key,
    onpointercancel: () => { start = null; }, onpointerleave: () => { start = null; } },
  h("thead", {}, h("tr", {}, h("th", { role: "columnheader", class: "corner", scope: "col" }, "step"), heads)),
  h("tbody", {}, cells.map((row, n) => h("tr", { class: n && grid.blocks[n] !== grid.blocks[n - 1] ? "first" : null }, sides[n], row))));
  addEventListener("pointerup", () => { start = null; });

  function choose(unit, step) {
    move(unit, step);
    if (dragged) { dragged = false; return; } // the drag has painted
    if (unit < 0) paint([[step, -1]], null);
    else if (step < 0) paint([[-1, unit]], null);
    else paint([[step, unit]], !on[step][unit]);
  }

  function move(unit, step) {
    where(cursor).tabIndex = -1;
    cursor = [unit, step];
    where(cursor).tabIndex = 0;
  }

  function key(event) {
    const [unit, step] = cursor, by = ARROWS[event.key];
    let next = null;
    if (by) next = [unit + by[0], step + by[1]];
    else if (event.key === "Home") next = [event.ctrlKey ? 0 : unit, unit < 0 || event.ctrlKey ? 0 : -1];
    else if (event.key === "End") next = [event.ctrlKey ? units - 1 : unit, steps - 1];
    else if (event.key === " " || event.key === "Enter") choose(unit, step);
    else return;
    event.preventDefault();
    if (!next || next[0] >= units || next[1] >= steps || Math.min(...next) < -1 || Math.max(...next) < 0 || (next[0] < 0 && next[1] < 0)) return;
    move(...next);
    where(cursor).focus();
  }

  /** Draw what is painted, [step][unit], with its live cells and calls. */
  function draw(painted, alive, called) {
    on = painted;
    heads.forEach((head, t) => {
      head.classList.toggle("skipped", !called[t]);
      head.setAttribute("aria-label", `step ${t + 1}${called[t] ? "" : ", no call: the last output is used again"}. ${t ? "Enter switches the whole step" : "It computes everything"}`);
    });
    sides.forEach((side, n) => {
      const kept = alive.filter((row) => row[n]).length;
      side.style.setProperty("--share", `${(100 * grid.shares[n]) / Math.max(...grid.shares)}%`);
      side.setAttribute("aria-label", `${grid.names[n]}, computed for use at ${kept} of ${steps} steps. Enter switches the whole unit`);
      side.title = `${grid.names[n]}: ${(100 * grid.shares[n]).toFixed(1)} % of a call's MACs`;
    });
    cells.forEach((row, n) => row.forEach((cell, t) => {
      const state = !on[t][n] ? "reused" : alive[t][n] ? "computed" : "dead";
      cell.className = state;
      cell.setAttribute("aria-selected", on[t][n] ? "true" : "false");
      cell.setAttribute("aria-label", `${grid.names[n]}, step ${t + 1}: ${state === "dead" ? "computed, but dead work" : state}`);
    }));
  }

  where(cursor).tabIndex = 0;
  return { element: table, draw };
}
