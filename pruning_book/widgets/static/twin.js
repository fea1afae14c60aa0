// What all widgets share: building elements, numbers as text, the address bar, and the two ways onto a page.
import { APP_CSS } from "./app_style.js";

const SVG = "http://www.w3.org/2000/svg";

/** Build an element: h("p", {class: "x", onclick: f}, "text", child); names that begin with "svg:" are SVG. */
export function h(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Write a number as the Python side does: fixed decimals, commas between thousands, "not measured" for null. */
export function number(value, digits, unit = "") {
  if (value === null || value === undefined) return "not measured";
  const text = value.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits, signDisplay: "negative" });
  return unit ? `${text}\u00a0${unit}` : text;
}

/** Choose one of a few options: a fieldset of radio buttons, or a select where there are many. */
export function choice(id, legend, labels, current, onchange) {
  if (labels.length > 8) {
    const options = labels.map((label, i) => h("option", { value: i, selected: i === current }, label));
    const select = h("select", { id, onchange: () => onchange(Number(select.value)) }, options);
    return { element: h("div", { class: "control" }, h("label", { for: id }, legend), select), set: (i) => { select.value = i; } };
  }
  const inputs = labels.map((_, i) => h("input", {
    type: "radio", name: id, id: `${id}-${i}`, value: i, checked: i === current, onchange: () => onchange(i),
  }));
  const options = inputs.map((input, i) => h("label", { for: input.id }, input, h("span", {}, labels[i])));
  const element = h("fieldset", { class: labels.join("").length > 30 ? "control wide" : "control" }, h("legend", {}, legend), h("div", { class: "options" }, options));
  return { element, set: (i) => { inputs[i].checked = true; } };
}

// The address bar: "#name:steps=8&guidance=3;other:model=sd-1.5" holds the state of every widget of the page.

/** Return what the address, or any "#…" text, says about one widget as {axis: text}, null where it says nothing. */
export function readHash(name, hash = location.hash) {
  for (const part of hash.replace(/^#/, "").split(";")) {
    const [who, what] = part.split(/:(.*)/s);
    if (who === name && what !== undefined)
      return Object.fromEntries(what.split("&").map((pair) => pair.split(/=(.*)/s).slice(0, 2).map(decode)));
  }
  return null;
}

/** Put one widget's state in the address, leaving the other widgets' parts as they are; adds nothing to the history. */
export function writeHash(name, state) {
  const others = location.hash.replace(/^#/, "").split(";").filter((part) => part.includes(":") && !part.startsWith(`${name}:`));
  const own = Object.entries(state).map((pair) => pair.map((text) => encodeURIComponent(text)).join("=")).join("&");
  // Browsers refuse more than some hundred changes in half a minute; the next one catches up.
  try { history.replaceState(history.state, "", `#${[...others, `${name}:${own}`].join(";")}`); } catch { /* as above */ }
}

/** Call back with {axis: text} when the page is opened at, or a link leads to, "#name:axis=stop". */
export function followHash(host, name, callback) {
  const follow = (hash, scroll) => {
    const wanted = readHash(name, hash);
    if (wanted === null) return;
    callback(wanted);
    if (scroll) host.scrollIntoView({ block: "nearest" });
  };
  // A link to the state that the address already holds fires no hashchange, so links are watched as well.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href]");
    if (link && link.href.split("#")[0] === location.href.split("#")[0]) follow(link.hash, true);
  });
  addEventListener("hashchange", () => follow(location.hash, false));
  follow(location.hash, true);
}

function decode(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

// The two mounts. The static picture and table inside the host stay there: print and a failed start show them.

/** Give `host` a shadow root with the widget's own style; the page's rules for tables and inputs do not reach in. */
export function stage(host) {
  const root = host.shadowRoot ?? host.attachShadow({ mode: "open" });
  const app = h("div", { class: "app" });
  root.replaceChildren(h("style", {}, APP_CSS), h("slot"), app);
  return app;
}

/** Mount every host of this kind in the page that has not been mounted, each from the JSON beside it. */
export function mountAll(kind, mount) {
  // Notebook front ends own their address bar.
  const hash = window.top === window && !document.querySelector(".jp-LabShell, .jp-Notebook");
  for (const host of document.querySelectorAll(`[data-pl-widget="${kind}"]`)) {
    if (host.shadowRoot) continue;
    try {
      mount(host, JSON.parse(host.querySelector('script[type="application/json"]').textContent), { hash });
    } catch (error) {
      (host.shadowRoot ?? host.attachShadow({ mode: "open" })).replaceChildren(h("slot"));
      console.error(error);
    }
  }
}

/** Return the anywidget side: data comes from Python on request, and `ask` sends a state there to be recomputed. */
export function anywidget(mount) {
  return {
    render({ model, el }) {
      const view = Math.random().toString(36).slice(2);
      const host = h("div", { class: "pl-twin" });
      let counter = 0, mounted = false, waiting = null, next = null;
      const send = (request) => {
        model.set("request", { ...request, view, number: ++counter });
        model.save_changes();
      };
      // One request at a time: while Python works, only the newest wish is kept, so that none pile up in the kernel.
      const ask = (state) => new Promise((resolve) => {
        if (waiting) { next?.resolve(null); next = { state, resolve }; return; }
        send({ state });
        waiting = { number: counter, resolve };
      });
      const answered = () => {
        const response = model.get("response");
        if (response.view !== view || response.number !== waiting?.number) return;
        const { resolve } = waiting, queued = next;
        waiting = next = null;
        resolve(queued ? null : response);
        if (queued) ask(queued.state).then(queued.resolve);
      };
      const start = () => {
        if (mounted || !model.get("data").version) return;
        mounted = true;
        mount(host, model.get("data"), { hash: false, ask });
      };
      el.append(host);
      model.on("change:data", start);
      model.on("change:response", answered);
      start();
      if (!mounted) send({ want: "data" });
      return () => { model.off("change:data", start); model.off("change:response", answered); };
    },
  };
}
