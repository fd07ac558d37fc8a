// The charts: what each shows, its legend, its text summary and its table. uPlot draws; it is loaded before us.
import * as words from "./words.js";

const k = (row, name) => (row.tokens_per_step === null ? null : row.k_by_proposer[name] ?? 0);
const CHARTS = [
  {
    title: "Tokens per second",
    format: words.number,
    series: [{ label: "delivered", colour: "blue", fill: true, value: (row) => row.tokens_per_second }],
  },
  {
    title: "Goodput",
    format: words.number,
    series: [
      { label: "measured", colour: "blue", value: (row) => row.goodput_measured },
      { label: "predicted", colour: "orange", dashed: true, value: (row) => row.goodput_predicted },
    ],
  },
  {
    title: "Requests",
    format: words.number,
    series: [
      { label: "running", colour: "blue", fill: true, value: (row) => row.running },
      { label: "waiting", colour: "orange", dashed: true, value: (row) => row.waiting },
    ],
  },
  {
    title: "Speculation length (k)",
    format: words.number,
    series: [
      { label: "draft", colour: "blue", value: (row) => k(row, "draft") },
      { label: "lookup", colour: "orange", dashed: true, value: (row) => k(row, "lookup") },
      { label: "tokens per step", colour: "ink", dots: true, value: (row) => row.tokens_per_step },
    ],
  },
  {
    title: "Time to the first token",
    format: words.seconds,
    series: [
      { label: "median", colour: "blue", value: (row) => row.ttft?.p50 ?? null },
      { label: "95th percentile", colour: "orange", dashed: true, value: (row) => row.ttft?.p95 ?? null },
    ],
  },
  {
    title: "Time per output token",
    format: words.seconds,
    series: [
      { label: "median", colour: "blue", value: (row) => row.tpot?.p50 ?? null },
      { label: "95th percentile", colour: "orange", dashed: true, value: (row) => row.tpot?.p95 ?? null },
    ],
  },
  {
    title: "Time to the end of an answer",
    format: words.seconds,
    series: [
      { label: "median", colour: "blue", value: (row) => row.e2e?.p50 ?? null },
      { label: "95th percentile", colour: "orange", dashed: true, value: (row) => row.e2e?.p95 ?? null },
    ],
  },
  {
    title: "Cache in use",
    format: words.percent,
    most: 1,
    series: [{ label: "of all blocks", colour: "blue", fill: true, value: (row) => row.kv_cache_usage }],
  },
  {
    title: "Time spent in steps",
    format: words.percent,
    most: 1,
    series: [{ label: "of the time", colour: "blue", fill: true, value: (row) => row.busy }],
  },
];

/** An element with a class and a text. */
export function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

/** All charts, in *parent*; returns what shows rows in them. */
export function drawCharts(parent) {
  const charts = CHARTS.map((about) => new Chart(parent, about));
  return {
    show: (rows, window) => charts.forEach((chart) => chart.show(rows, window)),
    recolour: () => charts.forEach((chart) => chart.redraw()),
  };
}

class Chart {
  constructor(parent, about) {
    this.about = about;
    this.figure = element("figure", "card chart");
    const caption = element("figcaption");
    caption.append(element("h3", "", about.title));
    this.legend = element("ul", "legend");
    this.values = about.series.map((series) => {
      const item = element("li");
      const swatch = element("span", `swatch c-${series.colour}${series.dashed || series.dots ? " dashed" : ""}`);
      const value = element("b");
      item.append(swatch, `${series.label} `, value);
      this.legend.append(item);
      return { swatch, value };
    });
    this.plot = element("div", "plot");
    this.plot.setAttribute("role", "img");
    this.axis = element("span", "c-ink hidden");
    this.grid = element("span", "grid-colour hidden");
    this.summary = element("p", "summary");
    this.details = element("details");
    this.table = element("div", "scroll");
    this.table.tabIndex = 0;
    this.table.setAttribute("role", "region");
    this.table.setAttribute("aria-label", `${about.title}, as a table`);
    this.details.append(element("summary", "", "As a table"), this.table);
    this.details.addEventListener("toggle", () => this.fillTable());
    this.figure.append(caption, this.legend, this.plot, this.axis, this.grid, this.summary, this.details);
    parent.append(this.figure);
    this.rows = [];
    this.uplot = new uPlot(this.options(), [[0], ...about.series.map(() => [null])], this.plot);
    new ResizeObserver(() => this.resize()).observe(this.plot);
  }

  options() {
    const colourOf = (node) => getComputedStyle(node).color;
    const axis = {
      stroke: () => colourOf(this.axis),
      font: "12px system-ui, sans-serif",
      grid: { stroke: () => colourOf(this.grid), width: 1 },
      ticks: { show: false },
    };
    return {
      width: Math.max(120, this.plot.clientWidth),
      height: 150,
      padding: [8, 26, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { setScale: false, x: false }, sync: { key: "page" } },
      hooks: { setCursor: [(uplot) => this.showValues(uplot.cursor.idx)] },
      scales: { x: { time: true }, y: { range: (_, __, most) => [0, this.about.most ?? (most > 0 ? most * 1.15 : 1)] } },
      axes: [
        { ...axis, size: 28, space: 70, values: (uplot, at) => at.map(this.isShort(uplot) ? words.timeOf : words.minuteOf) },
        { ...axis, size: 56, space: 34, values: (_, at) => at.map((value) => (value === null ? "" : this.about.format(value))) },
      ],
      series: [
        {},
        ...this.about.series.map((series, index) => ({
          label: series.label,
          width: 2,
          dash: series.dashed ? [7, 5] : series.dots ? [2, 4] : undefined,
          stroke: () => colourOf(this.values[index].swatch),
          fill: series.fill ? () => faded(colourOf(this.values[index].swatch)) : undefined,
          points: { show: false },
        })),
      ],
    };
  }

  /** Whether minutes alone would name several marks alike. */
  isShort(uplot) {
    return uplot.scales.x.max - uplot.scales.x.min < 200;
  }

  resize() {
    const width = this.plot.clientWidth;
    if (width > 0 && width !== this.uplot.width) this.uplot.setSize({ width, height: 150 });
  }

  redraw() {
    this.uplot.redraw(false);
  }

  show(rows, window) {
    this.rows = rows;
    const values = this.about.series.map((series) => rows.map(series.value));
    this.uplot.batch(() => {
      this.uplot.setData([rows.map((row) => row.time), ...values.map((column) => broken(column, rows))], false);
      const last = rows.length ? rows.at(-1).time : Date.now() / 1000;
      // A young history is not squeezed into a corner, but a minute is the least.
      const first = Math.max(last - window, Math.min(rows[0]?.time ?? last, last - 60));
      this.uplot.setScale("x", { min: first, max: last });
    });
    this.showValues(null);
    const text = this.about.series.map((series, i) => `${series.label} ${words.spread(values[i], this.about.format)}`).join("; ");
    this.summary.textContent = `${text[0].toUpperCase()}${text.slice(1)}.`;
    this.plot.setAttribute("aria-label", `${this.about.title}: ${text}`);
    this.fillTable();
  }

  showValues(index) {
    const row = this.rows[index ?? this.rows.length - 1];
    this.about.series.forEach((series, i) => {
      this.values[i].value.textContent = row ? this.about.format(series.value(row)) : "";
    });
  }

  /** At most ten rows, evenly over the time shown: what a screen reader can be listened to. */
  fillTable() {
    if (!this.details.open) return;
    const table = element("table");
    const head = element("tr");
    for (const title of ["Time", ...this.about.series.map((series) => series.label)]) {
      const cell = element("th", "", title);
      cell.scope = "col";
      head.append(cell);
    }
    const body = element("tbody");
    const stride = Math.max(1, Math.ceil(this.rows.length / 10));
    for (let at = this.rows.length - 1; at >= 0; at -= stride) {
      const line = element("tr");
      const time = element("th", "", words.timeOf(this.rows[at].time));
      time.scope = "row";
      line.append(time, ...this.about.series.map((series) => element("td", "", this.about.format(series.value(this.rows[at])))));
      body.append(line);
    }
    const headGroup = element("thead");
    headGroup.append(head);
    table.append(element("caption", "hidden", this.about.title), headGroup, body);
    this.table.replaceChildren(table);
  }
}

/** A column with a gap where the server was not heard of for a while: no line is drawn through what nobody saw. */
function broken(column, rows) {
  return column.map((value, i) => (i && rows[i].time - rows[i - 1].time > 3 * rows[i].seconds + 5 ? null : value));
}

function faded(colour) {
  const [r, g, b] = colour.match(/[\d.]+/g);
  return `rgba(${r}, ${g}, ${b}, 0.14)`;
}
