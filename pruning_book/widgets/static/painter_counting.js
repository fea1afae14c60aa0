// What a painted table costs, by the same rules as `Grid` in Python: which computed cells anybody reads, which calls of
// the denoiser are left, and how many MACs that makes. A wiring is {inputs, output, reads}: for each unit the units it
// reads, the units that the output reads, and whether the output also reads the denoiser's own input.

/** Return [step][unit]: true where a cell is computed and its value reaches an output, now or from the cache later.
 * The first step stays as it is: what nobody reads is run there, too, for nothing else could be passed on. */
export function live(on, { inputs, output }) {
  const found = on.map((row) => row.map(() => false)), later = on[0].map(() => false);
  for (let t = on.length - 1; t >= 0; t--) {
    const now = on[t].map((_, n) => output.includes(n));
    for (let n = now.length - 1; n >= 0; n--) { // whoever reads a unit comes after it
      if (!on[t][n]) { later[n] ||= now[n]; continue; } // its cached value is read, from an earlier step
      found[t][n] = now[n] || later[n];
      later[n] = false; // what is read later is this value
      if (found[t][n]) for (const other of inputs[n]) now[other] = true;
    }
  }
  return [on[0], ...found.slice(1)];
}

/** Return, for each step, whether the denoiser is called at all; where not, its last output is used again. */
export function calls(alive, { reads }) {
  return alive.map((row) => reads || row.includes(true));
}

/** Return the MACs of one sample over all steps: `units` holds those of each unit, `base` those of the rest of a call. */
export function cost(alive, called, units, base) {
  return alive.reduce((sum, row, t) => row.reduce((part, is, n) => (is ? part + units[n] : part), sum) + (called[t] ? base : 0), 0);
}

/** Return [step][unit] from strings such as "1101", and strings from [step][unit]. */
export const read = (rows) => rows.map((row) => [...row].map((digit) => digit === "1"));
export const write = (on) => on.map((row) => row.map((is) => (is ? "1" : "0")).join(""));

/** Return a table as hexadecimal digits for the address, and back; null where the text is no table of this size. */
export function toHex(on) {
  const bits = write(on).join("");
  return bits.padEnd(Math.ceil(bits.length / 4) * 4, "0").match(/.{4}/g).map((four) => parseInt(four, 2).toString(16)).join("");
}
export function fromHex(text, steps, units) {
  if (!/^[0-9a-f]+$/.test(text) || text.length !== Math.ceil((steps * units) / 4)) return null;
  const bits = [...text].map((digit) => parseInt(digit, 16).toString(2).padStart(4, "0")).join("");
  return read(Array.from({ length: steps }, (_, t) => bits.slice(t * units, (t + 1) * units)));
}
