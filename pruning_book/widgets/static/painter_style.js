// The painted table's own style, beside app_style.js. What a cell is shows in its shape as well as in its colour.
export const PAINTER_CSS = `
.painting { min-width: 0; }
.paint { table-layout: fixed; border-collapse: separate; border-spacing: 1px; font-size: .72rem; touch-action: pan-y; user-select: none; -webkit-user-select: none; }
.paint th, .paint td { height: 24px; padding: 0; border: 0; text-align: center; vertical-align: middle; cursor: pointer; }
.paint th:first-child { width: 3.9rem; padding: 0 .2rem; text-align: left; white-space: nowrap; }
.paint tbody th { background: linear-gradient(to right, var(--pl-line) var(--share), transparent 0); border-radius: 3px; }
.paint .corner { cursor: default; }
.paint thead th { font-size: 1em; color: var(--pl-ink); }
.paint thead th.skipped { color: var(--pl-muted); text-decoration: line-through; }
.paint tr.first > * { height: 28px; padding-top: 0; background-clip: padding-box; border-top: 4px solid transparent; }
.paint td { border-radius: 3px; box-shadow: inset 0 0 0 1px var(--pl-edge); }
.paint td.computed { background-color: var(--pl-accent); box-shadow: none; }
.paint td.dead { background-image: repeating-linear-gradient(135deg, var(--pl-edge) 0 2px, var(--pl-line) 2px 6px); }
.paint :focus-visible { outline: 3px solid var(--pl-focus); outline-offset: 0; z-index: 1; }
.tools { display: flex; flex-wrap: wrap; gap: .4rem; margin: .5rem 0 .2rem; }
.tools button { font: inherit; font-size: .85em; min-height: 26px; padding: .15rem .7rem; color: inherit; background: var(--pl-ground); border: 1px solid var(--pl-edge); border-radius: 6px; cursor: pointer; }
.tools button:disabled { color: var(--pl-muted); border-color: var(--pl-line); cursor: default; }
.tools button:focus-visible { outline: 3px solid var(--pl-focus); outline-offset: 2px; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .4rem 0 0; font-size: .8em; color: var(--pl-muted); }
.key i { display: inline-block; width: 14px; height: 14px; margin-right: .35rem; vertical-align: -2px; border-radius: 3px; box-shadow: inset 0 0 0 1px var(--pl-edge); }
.key .computed { background: var(--pl-accent); box-shadow: none; }
.key .dead { background-image: repeating-linear-gradient(135deg, var(--pl-edge) 0 2px, var(--pl-line) 2px 6px); }
.missing { position: relative; }
.missing canvas { opacity: .25; }
.meter { height: .7rem; margin: .2rem 0 .1rem; border-radius: 4px; background: var(--pl-line); overflow: hidden; }
.meter i { display: block; height: 100%; background: var(--pl-accent); }
.stage.painter { align-items: start; }
.stage.painter figcaption span { white-space: nowrap; }
.stage.painter .say { margin-top: 0; }
.stage.painter > * { min-width: 0; }
@container (max-width: 40rem) { .stage.painter .pictures figure { flex-basis: 8rem; } }
@container (min-width: 40rem) {
  .stage.painter { grid-template-columns: minmax(0, 11fr) minmax(0, 9fr); grid-template-rows: auto auto 1fr; }
  .stage.painter .painting { grid-column: 1; grid-row: 1 / span 3; }
  .stage.painter > :not(.painting) { grid-column: 2; } }
@media (forced-colors: active) { .paint td.computed, .key .computed { background: CanvasText; forced-color-adjust: none; } }
@media (prefers-reduced-motion: no-preference) { .meter i { transition: width .2s ease-out; } }
`;
