// Draws the charts of the page, and marks one trial in all of them. Texts from the study only ever become text nodes.
"use strict";
(() => {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const isDark = matchMedia("(prefers-color-scheme: dark)");
  const panel = document.getElementById("trial");
  const tip = document.getElementById("tip");
  // Beyond this many trials thousands of SVG nodes would be slow; a canvas is not.
  const MAX_SVG_TRIALS = 400;
  let views = [];
  let rounds = 0;
  let picked = null;

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function list(entries) {
    const dl = element("dl");
    for (const [term, text] of entries) dl.append(element("dt", {}, term), element("dd", {}, text));
    return dl;
  }

  const show = (value) => (typeof value === "number" ? String(Number(value.toPrecision(5))) : String(value));

  async function draw(scheme) {
    const round = ++rounds;
    for (const { view } of views) view.finalize();
    views = [];
    for (const study of report.studies) {
      for (const chart of study.charts) {
        // Views write into their rows, so each has its own copies.
        const values = (chart.data || study.rows).map((row) => ({ ...row }));
        const { view } = await vegaEmbed(
          document.getElementById(chart.id),
          { ...chart.spec, data: { values } },
          {
            actions: false,
            config: report.configs[scheme],
            defaultStyle: false,
            hover: true,
            logLevel: 2,
            mode: "vega-lite",
            renderer: study.rows.length > MAX_SVG_TRIALS ? "canvas" : "svg",
            tooltip: (_, event, item, value) => showTip(event, value),
          },
        );
        // Another colour scheme was asked for in the meantime.
        if (round !== rounds) { view.finalize(); return; }
        view.addEventListener("click", (_, item) => {
          const trial = item && item.datum && item.datum.trial;
          if (Number.isInteger(trial)) pick(study.key, trial);
        });
        if (picked && picked.study === study.key) view.signal("picked", picked.trial).run();
        views.push({ id: chart.id, view, study: study.key });
      }
    }
    // For whoever automates the page: every chart is drawn.
    window.playbookViews = views;
  }

  function showTip(event, value) {
    tip.hidden = value === null || value === undefined || value === "" || typeof value !== "object";
    if (tip.hidden) return;
    // A dash stands where a trial lacks a hyperparameter of another branch.
    tip.replaceChildren(list(Object.entries(value).filter(([, text]) => text !== "–" && text !== "")));
    const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const y = event.clientY + 14;
    tip.style.left = `${Math.max(8, x)}px`;
    tip.style.top = `${y + tip.offsetHeight > innerHeight ? Math.max(8, event.clientY - tip.offsetHeight - 10) : y}px`;
  }

  function configuration(study, row) {
    const config = {};
    study.parameters.forEach((parameter, place) => {
      const value = row[`p${place}`];
      if (value !== null) config[parameter.name] = parameter.choices ? parameter.choices[value] : value;
    });
    return config;
  }

  function sparkline(study, trial) {
    const curve = study.curves.trials[trial];
    if (!curve) return [];
    const [grid, validation, training] = curve;
    const steps = study.curves.grids[grid];
    const finite = validation.concat(training).filter((value) => value !== null);
    let low = Math.min(...finite);
    let high = Math.max(...finite);
    const useLog = study.direction === "minimize" && low > 0 && high > 30 * low;
    const scaled = (value) => (useLog ? Math.log(value) : value);
    [low, high] = [scaled(low), scaled(high)];
    const last = steps[steps.length - 1] || 1;
    const path = (values) => {
      let pen = "M";
      let text = "";
      values.forEach((value, place) => {
        if (value === null) { pen = "M"; return; }
        const y = high > low ? 2 + (96 * (high - scaled(value))) / (high - low) : 50;
        text += `${pen}${((300 * steps[place]) / last).toFixed(1)},${y.toFixed(1)}`;
        pen = "L";
      });
      return text;
    };
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 300 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Curve of trial ${trial} over ${last} steps`);
    for (const [values, kind] of [[training, "training"], [validation, "validation"]]) {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
      line.setAttribute("d", path(values));
      line.setAttribute("class", kind);
      svg.append(line);
    }
    const scale = useLog ? ", logarithmic" : "";
    const dashed = training.length ? "; dashed: training" : "";
    return [svg, element("p", { class: "help" }, `${study.objective} over ${last} steps${scale}${dashed}`)];
  }

  function pick(key, trial) {
    picked = trial === null ? null : { study: key, trial };
    for (const { view, study } of views) view.signal("picked", picked && study === key ? trial : null).run();
    for (const select of document.querySelectorAll("select[data-study]")) {
      select.value = picked && select.dataset.study === key ? String(trial) : "";
    }
    for (const button of document.querySelectorAll("button[data-trial]")) {
      const isPicked = picked !== null && button.dataset.study === key && button.dataset.trial === String(trial);
      button.setAttribute("aria-pressed", String(isPicked));
      button.closest("tr").classList.toggle("picked", isPicked);
    }
    panel.hidden = picked === null;
    if (picked === null) return;
    const study = report.studies.find((candidate) => candidate.key === key);
    const row = study.rows.find((candidate) => candidate.trial === trial);
    const config = configuration(study, row);
    const close = element("button", { type: "button", class: "close", "aria-label": "Close" }, "×");
    close.addEventListener("click", () => pick(key, null));
    const copy = element("button", { type: "button" }, "Copy as JSON");
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(JSON.stringify(config, null, 2));
      copy.textContent = "Copied";
    });
    const facts = [[study.objective, row.objective === null ? "none" : show(row.objective)], ["status", row.status]];
    if (row.rank !== null) facts.push(["rank", `${row.rank}`]);
    if (row.reason) facts.push(["reason", row.reason]);
    panel.replaceChildren(
      close,
      element("h2", {}, `Trial ${trial}`),
      list(facts),
      ...sparkline(study, trial),
      element("h3", {}, "Configuration"),
      list(Object.entries(config).map(([name, value]) => [name, show(value)])),
      copy,
    );
  }

  for (const select of document.querySelectorAll("select[data-study]")) {
    select.addEventListener("change", () => pick(select.dataset.study, select.value === "" ? null : Number(select.value)));
  }
  for (const button of document.querySelectorAll("button[data-trial]")) {
    button.addEventListener("click", () => pick(button.dataset.study, Number(button.dataset.trial)));
  }
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && picked) pick(picked.study, null);
  });
  const scheme = () => (isDark.matches ? "dark" : "light");
  isDark.addEventListener("change", () => draw(scheme()));
  // Paper is white, and a closed <details> would print its summary only.
  const opened = [];
  addEventListener("beforeprint", () => {
    draw("light");
    for (const details of document.querySelectorAll("details:not([open])")) {
      details.open = true;
      opened.push(details);
    }
  });
  addEventListener("afterprint", () => {
    draw(scheme());
    for (const details of opened.splice(0)) details.open = false;
  });
  draw(scheme());
})();
