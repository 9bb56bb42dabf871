"use strict";
// Plots by uPlot, in the colours of the page, readable by keyboard and in words.

const Plots = (() => {
  const all = [];
  const DASHES = [[], [8, 4], [2, 3], [12, 3, 2, 3], [5, 5], [1, 5]];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function number(value, digits = 3) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    if (size !== 0 && size < 0.001) return value.toExponential(1);
    return value.toLocaleString("en", { maximumSignificantDigits: digits });
  }

  const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1) + " %");

  // A plot in a figure of its own. Series: {label, style, points, band, percent}; `style` chooses
  // colour and dashes, so that lines differ by more than their colour.
  function create(parent, title, series, options = {}) {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = title;
    const box = document.createElement("div");
    box.tabIndex = 0;
    box.setAttribute("role", "img");
    const said = document.createElement("p");
    said.className = "said";
    said.setAttribute("aria-live", "polite");
    figure.classList.toggle("banded", Boolean(options.bands));
    figure.append(caption, box, said);
    parent.append(figure);
    const plot = { title, series, options, box, said, figure, data: null, chart: null, width: 0 };
    box.addEventListener("keydown", (event) => move(plot, event));
    box.addEventListener("blur", () => clear(plot));
    all.push(plot);
    return plot;
  }

  const format = (plot) => (plot.options.percent ? percent : number);

  function build(plot) {
    if (plot.chart) plot.chart.destroy();
    const shown = format(plot);
    const grid = { stroke: colour("--grid"), width: 1 };
    const axis = { stroke: colour("--quiet"), grid, ticks: grid, font: "12px system-ui", size: 46 };
    const line = (s, at) => {
      const ink = colour(`--s${(s.style ?? at) % 6}`);
      const base = { label: s.label, stroke: ink, width: s.band ? 0 : 2, dash: DASHES[(s.style ?? at) % 6], spanGaps: true };
      base.value = (u, value) => shown(value);
      base.points = { show: Boolean(s.points), size: 6, fill: ink };
      if (s.band) base.points.show = false;
      return base;
    };
    const bands = plot.options.bands?.map((pair) => ({ series: pair, fill: colour("--s0") + "30" }));
    const options = {
      width: plot.width, height: 230,
      scales: { x: { time: false }, y: plot.options.percent ? { range: (u, least, most) => [0, Math.max(0.1, most ?? 1)] } : {} },
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
      axes: [{ ...axis, size: 34, values: (u, steps) => steps.map((s) => (Number.isInteger(s) ? compact(s) : "")) },
        { ...axis, size: 54, values: (u, values) => values.map((v) => (plot.options.percent ? Math.round(100 * v) + " %" : compact(v))) }],
      series: [{ label: "step", value: (u, value) => (value === null ? "–" : value.toLocaleString("en")) }, ...plot.series.map(line)],
    };
    const kinds = ["solid", "dashed", "dotted"];
    const ink = (u, at) => (at === 0 ? "transparent" : colour(`--s${(plot.series[at - 1].style ?? at - 1) % 6}`));
    const kind = (u, at) => kinds[((plot.series[at - 1]?.style ?? at - 1) % 6) % 3];
    options.legend = { markers: { width: 3, stroke: ink, fill: () => "transparent", dash: kind } };
    if (bands) options.bands = bands;
    plot.chart = new uPlot(options, plot.data, plot.box);
  }

  function compact(value) {
    const size = Math.abs(value);
    if (size >= 1e6) return value / 1e6 + "M";
    if (size >= 1e4) return value / 1e3 + "k";
    return String(+value.toPrecision(4));
  }

  function draw(plot, data) {
    plot.data = data;
    const width = Math.floor(plot.box.clientWidth);
    if (width === 0) return;
    if (!plot.chart || plot.chart.series.length !== data.length) {
      plot.width = width;
      build(plot);
    } else {
      if (width !== plot.width) {
        plot.width = width;
        plot.chart.setSize({ width, height: 230 });
      }
      plot.chart.setData(data);
    }
    const words = describe(plot, data);
    plot.box.setAttribute("aria-label", `${plot.title}: ${words}. Arrow keys read single points.`);
    if (!plot.box.contains(document.activeElement)) plot.said.textContent = words;
  }

  function describe(plot, data) {
    const parts = plot.series.map((s, at) => {
      if (s.band) return null;
      const column = data[at + 1];
      let last = column.length - 1;
      while (last >= 0 && (column[last] === null || column[last] === undefined)) last--;
      return last < 0 ? null : `${s.label} ${format(plot)(column[last])} at step ${data[0][last].toLocaleString("en")}`;
    });
    return parts.filter(Boolean).join("; ") || "nothing yet";
  }

  function move(plot, event) {
    const { chart, data } = plot;
    if (!chart || !data[0].length) return;
    const far = event.shiftKey ? 20 : 1;
    const last = data[0].length - 1;
    const at = chart.cursor.idx ?? last;
    const to = { ArrowLeft: at - far, ArrowRight: at + far, Home: 0, End: last }[event.key];
    if (to === undefined) {
      if (event.key === "Escape") clear(plot);
      return;
    }
    event.preventDefault();
    const index = Math.max(0, Math.min(last, to));
    chart.setCursor({ left: chart.valToPos(data[0][index], "x"), top: 10 });
    const words = plot.series.map((s, n) => (s.band || data[n + 1][index] == null ? null : `${s.label} ${format(plot)(data[n + 1][index])}`));
    plot.said.textContent = `step ${data[0][index].toLocaleString("en")}: ${words.filter(Boolean).join(", ")}`;
  }

  function clear(plot) {
    if (!plot.chart) return;
    plot.chart.setCursor({ left: -10, top: -10 });
    plot.said.textContent = describe(plot, plot.data);
  }

  function again(rebuild) {
    for (const plot of all) {
      if (!plot.data || !plot.figure.isConnected) continue;
      if (rebuild && plot.chart) {
        plot.chart.destroy();
        plot.chart = null;
      }
      draw(plot, plot.data);
    }
  }

  function remove(parent) {
    parent.replaceChildren();
    for (let at = all.length - 1; at >= 0; at--) {
      if (all[at].figure.isConnected) continue;
      all[at].chart?.destroy();
      all.splice(at, 1);
    }
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => again(true));
  let resized = 0;
  addEventListener("resize", () => {
    clearTimeout(resized);
    resized = setTimeout(() => again(false), 120);
  });

  return { create, draw, remove, number, percent };
})();
