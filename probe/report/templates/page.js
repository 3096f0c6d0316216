"use strict";
// Plotly's own sliders and dropdowns cannot be reached by the keyboard: HTML controls take their place.
function control(label, element) {
  const wrapped = document.createElement("label");
  wrapped.append(label + " ", element);
  return wrapped;
}

function slider(chart, spec) {
  const input = document.createElement("input");
  const output = document.createElement("output");
  const name = ((spec.currentvalue && spec.currentvalue.prefix) || "step").trim();
  input.type = "range";
  input.min = 0;
  input.max = spec.steps.length - 1;
  input.value = spec.active || 0;
  const show = () => {
    const step = spec.steps[input.value];
    output.textContent = step.label;
    input.setAttribute("aria-valuetext", name + " " + step.label);
    return step;
  };
  input.addEventListener("input", () => {
    const step = show();
    Plotly.update(chart, step.args[0] || {}, step.args[1] || {});
  });
  show();
  const wrapped = control(name, input);
  wrapped.append(output);
  return wrapped;
}

function dropdown(chart, spec) {
  const select = document.createElement("select");
  spec.buttons.forEach((button, place) => select.add(new Option(button.label, place)));
  select.value = spec.active || 0;
  select.addEventListener("change", () => {
    const button = spec.buttons[select.value];
    Plotly.update(chart, button.args[0] || {}, button.args[1] || {});
  });
  return control(spec.name || "show", select);
}

function draw(chart) {
  const spec = JSON.parse(document.getElementById(chart.dataset.spec).textContent);
  const controls = document.createElement("div");
  controls.className = "controls";
  for (const menu of spec.layout.updatemenus || []) controls.append(dropdown(chart, menu));
  for (const one of spec.layout.sliders || []) controls.append(slider(chart, one));
  delete spec.layout.updatemenus;
  delete spec.layout.sliders;
  chart.before(controls);
  if (spec.layout.height) chart.style.height = spec.layout.height + "px"; // else it would cover what follows
  return Plotly.newPlot(chart, spec.data, spec.layout, {
    responsive: true,
    displaylogo: false,
    displayModeBar: innerWidth > 700, // on a narrow screen it would cover the title
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  });
}

addEventListener("DOMContentLoaded", () => {
  Promise.all(Array.from(document.querySelectorAll(".chart"), draw)).then(() => {
    document.documentElement.dataset.drawn = "yes";
  });
});
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
