"use strict";
/* Puts the page together from its data: one run, one metric and one set of highlighted solvers at a time.
   Names come from files that anyone may have written: they are set as text, never as HTML. */
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const byId = (id) => document.getElementById(id);
  const runs = read("data"), charts = read("charts");

  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]; // Okabe & Ito 2008
  const SHAPES = {
    circle: "M7 2a5 5 0 1 0 .01 0z", square: "M2 2h10v10H2z", "triangle-up": "M7 1l6 11H1z",
    diamond: "M7 0l6 7-6 7-6-7z", "triangle-down": "M7 13L1 2h12z", cross: "M5 1h4v4h4v4H9v4H5V9H1V5h4z",
  };
  const DASHES = [[1, 0], [6, 3], [2, 3]];
  const FIRST = 7; // highlighted at most, at first: as many as there are colours
  const TRUNCATION = "trajectory_rmse";

  const state = { run: 0, metric: 0, chosen: [] };
  const run = () => runs[state.run];
  const metric = () => run().metrics[state.metric];

  // Numbers, as bench.report.text writes them.
  const significant = (x) => (Math.abs(x) < 100 ? String(Number(x.toPrecision(3))) : Math.round(x).toLocaleString("en"));
  const rounded = (x) => String(Number(x.toPrecision(1)));
  const withError = (x, se) => significant(x) + (se === null ? "" : " ± " + rounded(se));
  const brief = (n) => {
    for (const [size, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (Number(n.toPrecision(3)) >= size) return Number((n / size).toPrecision(3)) + letter;
    return String(n);
  };

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  const cell = (i) => Object.fromEntries(Object.entries(run().cells).map(([name, column]) => [name, column[i]]));
  const about = (solver) => {
    const { name, shown, kind } = run().solvers[solver];
    return { name: shown, full: name, kind };
  };
  const scores = (of) => of.cell.map((i, k) => ({
    ...cell(i), cell: i, value: of.value[k], se: of.se[k], best: of.best[k], letters: of.letters[k],
    ...about(run().cells.solver[i]),
  }));

  // Which solvers are highlighted, and how they look.

  const bestOfBudgets = () => {
    const wins = new Map();
    for (const score of scores(metric())) {
      const place = score.adaptive || !score.best ? 0 : score.best === 2 ? 100 : 1;
      wins.set(score.solver, (wins.get(score.solver) ?? 0) + place);
    }
    const ranked = [...wins].sort((a, b) => b[1] - a[1]);
    return ranked.slice(0, FIRST).filter(([, n], k) => n >= 100 || k < 5).map(([solver]) => solver);
  };

  const look = (solver) => {
    const i = state.chosen.indexOf(solver), n = COLOURS.length, shapes = Object.keys(SHAPES);
    if (i < 0) return { loud: false };
    const turn = Math.floor(i / n);
    return { loud: true, colour: COLOURS[i % n], shape: shapes[(i + turn) % shapes.length], dash: DASHES[turn % 3] };
  };

  const swatch = (solver) => {
    const space = "http://www.w3.org/2000/svg", { loud, colour, shape, dash } = look(solver);
    const svg = document.createElementNS(space, "svg");
    const draw = (tag, attributes) => {
      const part = document.createElementNS(space, tag);
      for (const [name, value] of Object.entries(attributes)) part.setAttribute(name, value);
      svg.append(part);
    };
    for (const [name, value] of Object.entries({ viewBox: "0 0 30 14", class: "swatch", "aria-hidden": "true" }))
      svg.setAttribute(name, value);
    if (loud) {
      draw("path", { d: "M0 7h30", stroke: colour, "stroke-width": 2, "stroke-dasharray": dash });
      draw("path", { d: SHAPES[shape], fill: colour, transform: "translate(8 0)" });
    } else draw("path", { d: "M0 7h30", stroke: "#b4b4b4" });
    return svg;
  };

  const toggle = (solver) => {
    const there = state.chosen.includes(solver);
    state.chosen = there ? state.chosen.filter((other) => other !== solver) : [...state.chosen, solver];
    showChosen();
  };

  const showSolvers = () => {
    const list = byId("solvers");
    list.querySelectorAll("label").forEach((label) => label.remove());
    run().solvers.forEach((solver, i) => {
      const box = make("input", { type: "checkbox", value: i });
      box.addEventListener("change", () => toggle(i));
      const name = make("span", { title: solver.name }, solver.shown + (solver.kind === "student" ? " †" : ""));
      list.append(make("label", {}, box, name));
    });
    findSolvers();
  };

  const findSolvers = () => {
    const wanted = byId("find").value.toLowerCase();
    byId("solvers").querySelectorAll("label").forEach((label) => {
      label.hidden = !label.textContent.toLowerCase().includes(wanted);
    });
  };

  const showChosen = () => {
    byId("solvers").querySelectorAll("label").forEach((label, i) => {
      label.querySelector("svg")?.remove();
      label.querySelector("input").checked = state.chosen.includes(i);
      label.querySelector("input").after(swatch(i));
    });
    showCharts();
    showTiles();
  };

  // The leaderboard.

  const shownOr = (value, text) => (value === null || value === undefined ? "—" : text(value));
  const number = (title, field, text) => ({
    title, data: field, className: "number", type: "num",
    render: (value, kind, row) => (kind === "display" ? text(value, row) : value ?? Infinity),
  });
  const mark = (row) => make("span", { class: "mark" }, ...(row.best ? [make("span",
    { role: "img", "aria-label": row.best === 2 ? "best" : "ties with the best" }, row.best === 2 ? "★" : "=")] : []));
  const speed = (text) => (value, row) => {
    if (value === null) return "—";
    const counts = !run().window || row.speed === "counts";
    return counts ? text(value, row) : make("s", { title: row.speed }, text(value, row));
  };
  const words = (title, field, full = field) => ({
    title, data: field,
    render: (value, kind, row) => (kind === "display" ? make("span", { title: row[full] }, value) : value),
  });
  const COLUMNS = [
    words("solver", "name", "full"),
    number("NFE", "nfe", (value, row) => (row.adaptive ? "≈ " : "") + value),
    number("value ± s.e.", "value", (value, row) => make("span", {}, mark(row),
      shownOr(value, () => withError(value, row.se)))),
    words("ties", "letters"),
    words("kind", "kind"),
    number("latency, ms", "latency", speed((value, row) => withError(value, row.latencyIqr / 2))),
    number("samples/s", "throughput", speed(significant)),
    number("memory, MiB", "memory", (value) => shownOr(value, significant)),
    number("tuning", "tuning", (value) => (value ? brief(value) : "—")),
    number("training", "training", (value) => (value ? brief(value) : "—")),
  ];

  let board = null;
  const showBoard = () => {
    const rows = scores(metric());
    board.clear().rows.add(rows);
    board.order([[1, "asc"], [2, metric().better === "higher" ? "desc" : "asc"]]);
    byId("metric-about").textContent = `${metric().title} (${metric().name}): ${metric().about}`;
    const budgets = [...new Set(rows.filter((row) => !row.adaptive).map((row) => row.nfe))].sort((a, b) => a - b);
    const kept = byId("budget").value;
    byId("budget").replaceChildren(new Option("all", ""), ...budgets.map((n) => new Option(n, n)));
    if (budgets.includes(Number(kept))) byId("budget").value = kept;
    filterBoard();
  };

  const filterBoard = () => {
    const [budget, kind, text] = ["budget", "kind", "search"].map((id) => byId(id).value.toLowerCase().trim());
    const wanted = (row) => (!budget || row.nfe === Number(budget)) && (!kind || row.kind === kind)
      && (!text || row.name.toLowerCase().includes(text));
    board.search.fixed("filters", (_, row) => wanted(row)).draw();
    const { recordsDisplay, recordsTotal } = board.page.info();
    byId("count").textContent = `${recordsDisplay} of ${recordsTotal} rows`;
  };

  const startBoard = () => {
    board = new DataTable("#board", {
      columns: COLUMNS, data: [], deferRender: true, pageLength: 25, lengthMenu: [10, 25, 50, 100, { label: "all", value: -1 }],
      autoWidth: false, layout: { topStart: null, topEnd: null, bottomStart: "pageLength", bottomEnd: "paging" },
      createdRow: (tr, row) => tr.classList.toggle("among", row.best > 0),
      language: { emptyTable: "no finished cell", zeroRecords: "nothing matches the filters" },
    });
  };

  // Charts.

  const ERRORS = 1; // of Vega's levels: a layer without points is no fault
  const drawn = new Map(); // the last chart of each place
  const draw = (id, spec, points, params, caption, description) => {
    const place = byId(id);
    place.classList.toggle("empty", !points.length);
    if (!points.length) {
      place.removeAttribute("role");
      place.replaceChildren(make("p", { class: "none" }, description));
      return;
    }
    const filled = { ...spec, datasets: { points } };
    const values = { caption, ticks: [], ...params };
    filled.params = spec.params.map((param) => ({ ...param, value: values[param.name] ?? param.value }));
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", description);
    drawn.set(id, (drawn.get(id) ?? Promise.resolve()).then(async (before) => { // one after another in a place
      before?.finalize();
      const result = await vegaEmbed(place, filled, {
        ast: true, actions: false, renderer: "svg", logLevel: ERRORS,
      });
      result.view.addEventListener("click", (_, item) => {
        const datum = Array.isArray(item?.datum) ? item.datum[0] : item?.datum;
        const solver = datum?.solver ?? item?.items?.[0]?.datum?.solver;
        if (solver !== undefined) toggle(solver);
      });
      return result;
    }));
  };

  const says = (row, of) => `${row.name}, ${row.nfe} calls: ${of.axis} ${withError(row.value, row.se)}`;
  const scale = (of) => (of.log ? "log" : "linear");
  const ticks = (rows) => [...new Set(rows.filter((row) => !row.adaptive).map((row) => row.nfe))];
  const floor = (rows) => Math.min(...rows.map((row) => row.value)) / 2; // bars that reach 0 have no end on a log axis

  /* Where a logarithmic axis of many solvers ends: so many times the best of the budget where that is largest. */
  const top = (rows) => {
    const solvers = rows.filter((row) => row.kind !== "student" && !row.adaptive), best = new Map();
    for (const row of solvers) best.set(row.nfe, Math.min(row.value, best.get(row.nfe) ?? Infinity));
    const highest = Math.max(...rows.map((row) => row.value));
    const many = new Set(solvers.map((row) => row.solver)).size > charts.cut.many;
    return many ? Math.min(highest, charts.cut.far * Math.max(...best.values())) : highest;
  };
  const cut = (rows, highest) => {
    const n = rows.filter((row) => row.value > highest).length;
    return n ? `; ${n} above ${significant(highest)} not shown` : "";
  };

  const drawAgainstCalls = (id, of) => {
    const rows = of ? scores(of).filter((row) => row.value !== null) : [];
    const lowest = of?.log ? floor(rows) : -Infinity;
    const points = rows.map((row) => ({
      ...look(row.solver), solver: row.solver, nfe: row.nfe, value: row.value, fill: 1, text: says(row, of),
      low: Math.max(row.value - 2 * row.se, lowest), high: row.value + 2 * row.se,
    }));
    const highest = top(rows), name = of ? `${of.axis} (±2 s.e.)${of.log ? cut(rows, highest) : ""}` : "";
    const text = of ? `${of.title} against network calls, a line a solver` : "This run has no trajectory errors.";
    draw(id, charts.quality[of ? scale(of) : "log"], points, { ticks: ticks(rows), top: highest }, name, text);
  };

  /* Which cells of a front have room for their names, the best in quality first. */
  const roomFor = (front, all, cost, log) => {
    const axis = (field, isLog) => {
      const of = (row) => (isLog ? Math.log(row[field]) : row[field]), values = all.map(of);
      const low = Math.min(...values), size = Math.max(...values) - low || 1;
      return (row) => (of(row) - low) / size;
    };
    const x = axis(cost, cost !== "memory"), y = axis("value", log), width = byId("pareto-chart").clientWidth;
    const size = (row) => 7 * (row.name.length + 4) / width;
    const apart = (a, b) => Math.abs(y(a) - y(b)) > 0.06 || x(b) - x(a) > size(a) || x(a) - x(b) > size(b);
    const order = metric().better === "higher" ? -1 : 1, named = [];
    for (const row of front.toSorted((a, b) => order * (a.value - b.value)))
      if (x(row) + size(row) < 1 && named.every((other) => apart(row, other))) named.push(row);
    return new Set(named.map((row) => row.cell));
  };

  const drawPareto = () => {
    const of = metric(), cost = byId("cost").value, front = of.fronts[cost];
    const known = scores(of).filter((row) => row[cost] !== null && row.value !== null);
    const named = roomFor(known.filter((row) => front.includes(row.cell)), known, cost, of.log);
    const points = known.map((row) => ({
      ...look(row.solver), solver: row.solver, value: row.value, cost: row[cost], front: front.includes(row.cell),
      fill: !run().window || row.speed === "counts" ? 1 : 0, label: named.has(row.cell) ? `${row.name} ${row.nfe}` : "",
      text: `${says(row, of)}; ${significant(row[cost])} ${cost === "memory" ? "MiB" : "ms"}`,
    }));
    const window_ = run().window;
    byId("pareto-about").textContent = "Ringed and on the line: cells that nothing else beats in both, named with their "
      + "network calls where there is room." + (window_ ? ` Only speeds count of cells whose ${window_.metric} lies between ${window_.low} and `
      + `${window_.high}; the others are hollow.` : "");
    byId("pareto-about").hidden = byId("cost").closest(".filters").hidden = byId("pareto-all").hidden = !run().measured;
    showUnbeaten(of);
    const text = run().measured ? `${of.title} against ${cost}` : "This run's latency and memory were not measured.";
    const highest = top(known), name = of.axis + (of.log ? cut(known, highest) : "");
    draw("pareto-chart", charts.pareto[cost][scale(of)], points, { top: highest }, name, text);
  };

  const showUnbeaten = (of) => {
    const all = new Map(scores(of).map((row) => [row.cell, row]));
    const line = (tag, texts) => make("tr", {}, ...texts.map((text, i) => make(tag, i ? { class: "number" } : {}, text)));
    const rows = of.fronts.all.map((i) => all.get(i)).map((row) => line("td", [
      row.name, String(row.nfe), withError(row.value, row.se), withError(row.latency, row.latencyIqr / 2), significant(row.memory),
    ]));
    const head = line("th", ["solver", "NFE", "value ± s.e.", "latency, ms", "memory, MiB"]);
    byId("unbeaten").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
    byId("pareto-all").hidden ||= !rows.length;
  };

  const drawAmortised = () => {
    const points = [];
    const powers = Array.from({ length: 31 }, (_, k) => 10 ** (3 + k / 5));
    const line = (name, style, offline, forwards) => powers.forEach((images) => points.push({
      ...style, line: name, images, forwards: forwards + offline / images,
    }));
    for (const pair of run().amortised) {
      const style = look(pair.solver), dashed = { ...style, dash: [4, 3] };
      line(`${pair.solver} ${pair.nfe}`, { ...style, dash: [1, 0], solver: pair.solver }, pair.offline, pair.forwards);
      if (style.loud) line(`${pair.solver} ${pair.nfe} rival`, dashed, pair.rivalOffline, pair.rivalForwards);
    }
    byId("amortised").hidden = !points.length;
    const text = "Forwards of the network an image, against images made";
    if (points.length) draw("amortised-chart", charts.amortised, points, {}, "forwards of the network an image", text);
  };

  const showCharts = () => {
    drawAgainstCalls("quality-chart", metric());
    drawPareto();
    drawAgainstCalls("truncation-chart", run().metrics.find((of) => of.name === TRUNCATION));
    drawAmortised();
  };

  // Samples.

  const budgetsOfTiles = () => {
    const found = Object.values(run().pictures.found ?? {}).flatMap((of) => Object.keys(of).map(Number));
    return [...new Set(found)].sort((a, b) => a - b);
  };

  const startSlider = () => {
    const budgets = budgetsOfTiles();
    byId("slide").hidden = !budgets.length;
    byId("calls").max = Math.max(0, budgets.length - 1);
    byId("calls").value = Math.floor(budgets.length / 2);
  };

  const showTiles = () => {
    const { found = {}, smooth } = run().pictures, calls = budgetsOfTiles()[byId("calls").value];
    byId("tiles").classList.toggle("smooth", Boolean(smooth));
    byId("calls-shown").textContent = calls === undefined ? "" : `${calls} calls`;
    byId("calls").setAttribute("aria-valuetext", `${calls} network calls`);
    const kept = state.chosen.filter((i) => found[run().solvers[i].name]);
    byId("tiles").replaceChildren(...kept.map((i) => {
      const { name, shown } = run().solvers[i], source = found[name][calls];
      const picture = source ? make("img", { src: source, alt: `Samples of ${shown} at ${calls} network calls` })
        : make("div", { class: "missing" }, `no cell at ${calls} calls`);
      return make("figure", {}, make("figcaption", {}, swatch(i), shown), picture);
    }));
    if (Object.keys(found).length && !kept.length)
      byId("tiles").append(make("p", { class: "none" }, "None of the highlighted solvers has samples: highlight others above."));
  };

  // The whole.

  const showMetric = () => { showBoard(); showChosen(); };
  const showRun = () => {
    document.querySelectorAll("[data-run]").forEach((part) => { part.hidden = Number(part.dataset.run) !== state.run; });
    byId("metric").replaceChildren(...run().metrics.map((of, i) => new Option(of.name, i)));
    state.metric = 0;
    state.chosen = bestOfBudgets();
    showSolvers();
    startSlider();
    showMetric();
  };

  const on = (id, event, act) => byId(id).addEventListener(event, act);
  on("run", "change", () => { state.run = Number(byId("run").value); showRun(); });
  on("metric", "change", () => { state.metric = Number(byId("metric").value); showMetric(); });
  for (const id of ["budget", "kind"]) on(id, "change", filterBoard);
  on("search", "input", filterBoard);
  on("find", "input", findSolvers);
  on("best", "click", () => { state.chosen = bestOfBudgets(); showChosen(); });
  on("clear", "click", () => { state.chosen = []; showChosen(); });
  on("cost", "change", drawPareto);
  on("calls", "input", showTiles);
  startBoard();
  byId("run").value = "0"; // browsers keep what was chosen before a reload
  showRun();
})();
