"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const box = document.getElementById("box");
const detail = document.getElementById("detail");
const shown = { lens: 0, prompt: 0, layer: data.layers.length - 1, row: 0 };
let cells = []; // [layer][row of the prompt]

function make(name, text, attributes) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  return element;
}

const percent = (value) => (value >= 0.0995 ? Math.round(100 * value) : (100 * value).toPrecision(2)) + " %";
const layerName = (layer) => (data.last && layer === data.layers.length - 1 ? "output" : String(data.layers[layer]));
const words = (lens, layer, row) => data.top[lens][layer][row].map((id) => data.words[id]);

function read(row, lens, layer) {
  const at = data.prompts[shown.prompt].rows[row];
  return {
    token: data.token[at],
    position: data.position[at],
    output: data.words[data.final[at]],
    words: words(lens, layer, at),
    probability: data.probability[lens][layer][at],
    kl: data.kl[lens][layer][at],
    rank: data.rank[lens][layer][at],
  };
}

function fill(cell, row, layer) {
  const one = read(row, shown.lens, layer);
  cell.textContent = one.words[0];
  cell.style.setProperty("--p", one.probability[0]);
  cell.classList.toggle("agrees", one.rank === 0);
  const where = "layer " + layerName(layer) + ", position " + one.position + ", " + one.token;
  const said = "reads " + one.words[0] + ", " + percent(one.probability[0]);
  const beside = one.rank === 0 ? "agrees with the output" : "the output is " + one.output;
  cell.setAttribute("aria-label", where + ": " + said + ", " + beside);
}

function fillAll() {
  cells.forEach((line, layer) => line.forEach((cell, row) => fill(cell, row, layer)));
  box.firstChild.setAttribute("aria-label", "Tokens that the lens " + data.lenses[shown.lens] + " reads, by layer and position");
}

function draw() {
  const prompt = data.prompts[shown.prompt];
  shown.row = Math.min(shown.row, prompt.rows.length - 1);
  const table = make("table", undefined, { role: "grid", "aria-describedby": "help" });
  const head = make("tr");
  head.append(make("th", "layer", { scope: "col" }));
  for (const at of prompt.rows) {
    const column = make("th", undefined, { scope: "col", title: data.token[at] });
    column.append(make("small", data.position[at]), data.token[at]);
    head.append(column);
  }
  const body = make("tbody");
  cells = data.layers.map(() => []);
  for (let layer = data.layers.length - 1; layer >= 0; layer--) {
    const line = make("tr");
    line.append(make("th", layerName(layer), { scope: "row" }));
    prompt.rows.forEach((_, row) => {
      const cell = make("td", undefined, { role: "gridcell", tabindex: -1, "aria-selected": false });
      cell.dataset.layer = layer;
      cell.dataset.row = row;
      cells[layer].push(cell);
      line.append(cell);
    });
    body.append(line);
  }
  const above = make("thead");
  above.append(head);
  table.append(above, body);
  box.replaceChildren(table);
  fillAll();
  choose(shown.layer, shown.row, false);
}

function table(lens, layer, row) {
  const one = read(row, lens, layer);
  const found = make("table", undefined, lens === shown.lens ? { class: "chosen" } : {});
  found.append(make("caption", data.lenses[lens]));
  one.words.forEach((word, rank) => {
    const line = make("tr");
    const value = make("td", percent(one.probability[rank]));
    value.style.setProperty("--p", one.probability[rank]);
    line.append(make("td", word, word === one.output ? { class: "agrees" } : {}), value);
    found.append(line);
  });
  const before = one.rank === 1 ? "1 token" : one.rank + " tokens";
  const said = one.rank === 0 ? "the output's token comes first" : before + " before the output's";
  return [found, make("p", "KL to the output " + one.kl.toPrecision(3) + " nat; " + said, { class: "soft" })];
}

function tell(layer, row) {
  const one = read(row, shown.lens, layer);
  const parts = [make("h2", "Layer " + layerName(layer) + ", position " + one.position + ": " + one.token)];
  parts.push(make("p", "The model puts first: " + one.output));
  const order = [shown.lens, ...data.lenses.keys()].filter((lens, at, all) => all.indexOf(lens) === at);
  for (const lens of order) parts.push(...table(lens, layer, row));
  detail.replaceChildren(...parts);
}

function choose(layer, row, focused) {
  const before = cells[shown.layer] && cells[shown.layer][shown.row];
  if (before) {
    before.tabIndex = -1;
    before.setAttribute("aria-selected", "false");
  }
  shown.layer = Math.max(0, Math.min(layer, cells.length - 1));
  shown.row = Math.max(0, Math.min(row, cells[0].length - 1));
  const cell = cells[shown.layer][shown.row];
  cell.tabIndex = 0;
  cell.setAttribute("aria-selected", "true");
  if (focused) {
    cell.focus({ preventScroll: true });
    uncover(cell);
  }
  tell(shown.layer, shown.row);
}

// the heads of rows and columns stay in place and would cover a cell that is scrolled to the edge
function uncover(cell) {
  const [inner, outer] = [cell.getBoundingClientRect(), box.getBoundingClientRect()];
  const corner = box.querySelector("th").getBoundingClientRect();
  const [left, top] = [outer.left + corner.width, outer.top + corner.height];
  if (inner.left < left) box.scrollLeft -= left - inner.left;
  else if (inner.right > outer.left + box.clientWidth) box.scrollLeft += inner.right - outer.left - box.clientWidth;
  if (inner.top < top) box.scrollTop -= top - inner.top;
  else if (inner.bottom > outer.top + box.clientHeight) box.scrollTop += inner.bottom - outer.top - box.clientHeight;
}

function switchTo(lens) {
  shown.lens = lens;
  document.querySelectorAll("input[name=lens]")[lens].checked = true;
  fillAll();
  tell(shown.layer, shown.row);
}

const MOVES = {
  ArrowUp: () => [shown.layer + 1, shown.row],
  ArrowDown: () => [shown.layer - 1, shown.row],
  ArrowLeft: () => [shown.layer, shown.row - 1],
  ArrowRight: () => [shown.layer, shown.row + 1],
  Home: () => [shown.layer, 0],
  End: () => [shown.layer, Infinity],
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
  const lens = event.key.toLowerCase() === "l" ? (shown.lens + 1) % data.lenses.length : Number(event.key) - 1;
  if (event.key !== " " && data.lenses[lens] !== undefined) switchTo(lens);
  else if (event.key in MOVES && event.target.tagName === "TD") choose(...MOVES[event.key](), true);
  else return;
  event.preventDefault();
});
box.addEventListener("focusin", (event) => {
  const at = event.target.dataset;
  if (at.layer !== undefined) choose(Number(at.layer), Number(at.row), false);
});
box.addEventListener("pointerover", (event) => {
  const at = event.target.dataset;
  if (at.layer !== undefined) tell(Number(at.layer), Number(at.row));
});
box.addEventListener("pointerleave", () => tell(shown.layer, shown.row));

function controls() {
  const form = document.getElementById("controls");
  const group = make("fieldset");
  group.append(make("legend", "Lens"));
  data.lenses.forEach((name, lens) => {
    const input = make("input", undefined, { type: "radio", name: "lens" });
    input.checked = lens === shown.lens;
    input.addEventListener("change", () => switchTo(lens));
    const label = make("label");
    label.append(input, name);
    if (lens < 9) label.append(make("kbd", lens + 1, { "aria-hidden": true }));
    group.append(label);
  });
  form.append(group);
  if (data.prompts.length > 1) {
    const select = make("select");
    data.prompts.forEach((prompt, at) => select.add(new Option(prompt.name, at)));
    select.addEventListener("change", () => {
      shown.prompt = Number(select.value);
      draw();
    });
    const label = make("label", "Prompt ");
    label.append(select);
    form.append(label);
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
}

controls();
draw();
document.documentElement.dataset.drawn = "yes";
