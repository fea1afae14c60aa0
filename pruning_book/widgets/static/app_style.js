// The style inside a widget's shadow root. Colours are the --pl-* variables of twin.css, set on the host.
export const APP_CSS = `
slot { display: none; }
.app { box-sizing: border-box; container-type: inline-size; color: var(--pl-ink); background: var(--pl-ground);
  border: 1px solid var(--pl-line); border-radius: 10px; padding: 1rem 1.1rem .9rem; font-size: .95rem; line-height: 1.45; text-align: left; }
.app *, .app *::before { box-sizing: border-box; }
header { display: flex; gap: .75rem; align-items: baseline; justify-content: space-between; margin-bottom: .8rem; }
header .title { font-weight: 600; font-size: 1.05em; }
.badge { flex: none; font-size: .75em; letter-spacing: .03em; padding: .1rem .55rem; border-radius: 99px;
  border: 1px solid var(--pl-line); color: var(--pl-muted); }
.badge[data-live] { color: var(--pl-ground); background: var(--pl-accent); border-color: var(--pl-accent); }

.controls { display: grid; gap: .8rem 1.6rem; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); }
.controls .wide { grid-column: 1 / -1; }
.control { min-width: 0; margin: 0; padding: 0; border: 0; }
.control > label, legend { display: flex; justify-content: space-between; gap: .6rem; padding: 0; font-weight: 600; font-size: .9em; }
output { font-weight: 400; color: var(--pl-accent); font-variant-numeric: tabular-nums; }
input[type=range] { display: block; width: 100%; height: 1.6rem; margin: .1rem 0 0; accent-color: var(--pl-accent); cursor: pointer; }
.stops { display: flex; justify-content: space-between; padding: 0 8px; font-size: .75em; color: var(--pl-muted);
  font-variant-numeric: tabular-nums; }
.stops span { width: 0; display: flex; justify-content: center; white-space: nowrap; }
select { font: inherit; width: 100%; margin-top: .25rem; padding: .3rem .4rem; color: inherit; background: var(--pl-ground);
  border: 1px solid var(--pl-edge); border-radius: 6px; }
.options { display: flex; flex-wrap: wrap; gap: .35rem; margin-top: .3rem; }
.options label { position: relative; display: inline-flex; cursor: pointer; }
.options input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: pointer; }
.options span { padding: .22rem .7rem; border: 1px solid var(--pl-edge); border-radius: 6px; font-size: .9em; }
.options input:checked + span { background: var(--pl-accent); border-color: var(--pl-accent); color: var(--pl-ground); }
input[type=range]:focus-visible, select:focus-visible, .options input:focus-visible + span, .scroll:focus-visible, summary:focus-visible {
  outline: 3px solid var(--pl-focus); outline-offset: 2px; border-radius: 6px; }

.stage { display: grid; gap: 1.1rem; margin-top: 1rem; grid-template-columns: minmax(0, 1fr); align-items: center; }
.pictures { display: flex; justify-content: center; gap: 1rem; }
.pictures figure { flex: 0 1 12rem; min-width: 0; margin: 0; }
canvas { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--pl-line); border-radius: 6px;
  image-rendering: pixelated; }
figcaption { margin-top: .3rem; font-size: .82em; color: var(--pl-muted); }
figcaption b { display: block; color: var(--pl-ink); }
.pictures .now canvas { outline: 2px solid var(--pl-accent); outline-offset: 1px; }
@container (min-width: 40rem) { .stage { grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); } }

.chart svg { display: block; width: 100%; max-width: 30rem; height: auto; margin: 0 auto; overflow: visible; }
.chart text { font-size: 11px; fill: var(--pl-muted); font-variant-numeric: tabular-nums; }
.chart .label { font-size: 11.5px; fill: var(--pl-ink); }
.grid { stroke: var(--pl-line); stroke-width: 1; }
.trace { fill: none; stroke: var(--pl-muted); stroke-width: 1.5; }
.spread { stroke: var(--pl-muted); stroke-width: 1.25; opacity: .7; }
.dot { fill: var(--pl-muted); }
.other { fill: var(--pl-muted); opacity: .25; }
.reference { fill: var(--pl-ground); stroke: var(--pl-ink); stroke-width: 2; }
.current { fill: var(--pl-accent); stroke: var(--pl-ground); stroke-width: 2; }
.current-spread { stroke: var(--pl-accent); stroke-width: 2.5; }
.hit { fill: transparent; cursor: pointer; }
.legend { display: flex; flex-wrap: wrap; justify-content: center; gap: .1rem 1rem; margin: .2rem 0 0; font-size: .78em; color: var(--pl-muted); }
.legend svg { display: inline-block; width: 14px; height: 12px; margin: 0 .3rem 0 0; vertical-align: -1px; }

.histogram { margin-top: 1rem; }
.histogram svg { display: block; width: 100%; height: auto; }
.histogram .legend svg { display: inline-block; width: 14px; }
.histogram text { font-size: 12px; fill: var(--pl-muted); font-variant-numeric: tabular-nums; }
.histogram .label { fill: var(--pl-ink); }
.histogram .all { fill: var(--pl-line); stroke: var(--pl-edge); stroke-width: .5; }
.histogram .kept { fill: var(--pl-accent); }
.histogram .cut { stroke: var(--pl-focus); stroke-width: 2; stroke-dasharray: 5 3; }
.histogram .cuts { fill: var(--pl-focus); opacity: .15; }
@container (max-width: 28rem) { .histogram text { font-size: 19px; } }

.drawing svg { display: block; width: 100%; max-width: 26rem; height: auto; margin: 0 auto; }
.stage.top { align-items: start; }
.block { cursor: pointer; }
.block .ground { fill: var(--pl-ground); }
.block .fill { fill: var(--pl-fill); }
.block .edge { fill: none; stroke: var(--pl-edge); }
.block text { font-size: 11px; fill: var(--pl-ink); font-variant-numeric: tabular-nums; }
.block.chosen .edge { stroke: var(--pl-accent); stroke-width: 3; }
.block.chosen text { font-weight: 600; }
.flow { stroke: var(--pl-edge); stroke-width: 1.5; }
.skip { stroke: var(--pl-edge); stroke-width: 1.5; stroke-dasharray: 3 3; }

.drawing.operators svg { max-width: 30rem; margin-top: .8rem; overflow: visible; }
.drawing svg:focus-visible { outline: 3px solid var(--pl-focus); outline-offset: 4px; border-radius: 6px; }
.cell { cursor: pointer; }
.cell .ground { fill: var(--pl-ground); }
.cell .fill { fill: var(--pl-fill); }
.cell .edge { fill: none; stroke: var(--pl-edge); }
.cell text, .size { font-size: 10.5px; fill: var(--pl-ink); }
.size { fill: var(--pl-muted); }
.cell.chosen .edge { stroke: var(--pl-accent); stroke-width: 3; }
.cell.chosen text { font-weight: 600; }
.cell.gone .ground { fill: var(--pl-line); }
.cell.gone text { fill: var(--pl-muted); }
.cell .cross { stroke: var(--pl-focus); stroke-width: 1.5; fill: none; }
.control[data-idle] output { color: var(--pl-muted); }
.stage.operators > * { min-width: 0; }
.stage.operators caption, .say, output, figcaption { overflow-wrap: anywhere; }
@container (min-width: 40rem) { .stage.operators { grid-template-rows: auto 1fr; } .stage.operators .map { grid-column: 2; grid-row: 1 / span 2; } }

.say { min-height: 1.4em; margin: .9rem 0 .4rem; }
.note { margin: .4rem 0 0; font-size: .82em; color: var(--pl-muted); }
.note.warn { color: var(--pl-warn); font-weight: 600; }
.note:empty { display: none; }
.hidden { position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums; }
caption { padding: 0 0 .3rem; text-align: left; color: var(--pl-muted); font-size: .92em; }
th, td { padding: .35rem .5rem; border-top: 1px solid var(--pl-line); text-align: right; vertical-align: top; font-weight: 400; }
thead th { border-top: 0; color: var(--pl-muted); font-size: .9em; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
td:last-child, thead th:last-child { padding-right: 0; }
small { display: block; color: var(--pl-muted); font-size: .82em; }
tr[aria-current] > * { font-weight: 600; }
td.absent { color: var(--pl-muted); font-style: italic; font-weight: 400; }
details { margin-top: .7rem; }
summary { cursor: pointer; color: var(--pl-muted); font-size: .88em; }
.passport { margin: .8rem 0 0; padding-top: .55rem; border-top: 1px solid var(--pl-line); font-size: .78em; color: var(--pl-muted); overflow-wrap: anywhere; }

.compact { font-size: .84em; }
.compact th, .compact td { padding-inline: .25rem; }
.compact thead th { white-space: normal; vertical-align: bottom; }
.compact td { position: relative; }
.bars td.bar { width: 50%; padding-top: .55rem; }
.bar i { display: block; height: .85rem; min-width: 1px; border-radius: 2px; background: var(--pl-bar); }
tr[aria-current] .bar i { background: var(--pl-accent); }
.bars tfoot > tr > * { border-top: 2px solid var(--pl-line); font-weight: 600; }
@container (max-width: 28rem) { .bars td.bar { width: 30%; } th, td { padding-inline: .3rem; } }
@media (prefers-reduced-motion: no-preference) { .bar i { transition: width .25s ease-out; } }
@media (forced-colors: active) { .histogram .kept { fill: CanvasText; } .bar i { background: CanvasText; } .options input:checked + span { outline: 3px solid Highlight; } }
@media print { slot { display: contents; } .app { display: none; } }
`;
