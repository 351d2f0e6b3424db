// Shows the candidates of the token clicked, and what temperature, k and p would have kept of the same logits.
(() => {
  const root = document.currentScript.closest(".ng-explain");
  const { params, steps } = JSON.parse(root.querySelector("script.data").textContent);
  const detail = root.querySelector(".detail");
  const SHOWN = 40;
  const number = (name, other) => (typeof params[name] === "number" ? params[name] : other);
  const settings = { temperature: number("temperature", 1), k: number("k", 0), p: number("p", 1) };
  const percent = (x) => (x === 0 ? "0 %" : x < 0.00001 ? "< 0.001 %" : (100 * x).toPrecision(3) + " %").replace(" ", "\u00a0");

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const visible = (text) => (text === "" ? "\u2400" : text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5"));

  // The distribution at these settings: weights of the largest logits, those of the others by their histogram.
  function kept(step) {
    const { temperature, k, p } = settings;
    const top = step.logits.length ? step.logits[0][2] : 0;
    if (temperature === 0) return { count: 1, mass: null, probabilities: step.logits.map((_, i) => (i === 0 ? 1 : 0)) };
    const weight = (logit) => Math.exp((logit - top) / temperature);
    const bins = step.tail.map(([count, logit]) => [count, weight(logit)]);
    const weights = step.logits.map(([, , logit]) => weight(logit));
    const all = weights.reduce((a, b) => a + b, 0) + bins.reduce((sum, [count, w]) => sum + count * w, 0);
    // Top-k, then top-p on what it left.
    const runs = [...weights.map((w) => [1, w]), ...bins];
    let left = k > 0 ? k : Infinity;
    let inK = 0;
    const limited = runs.map(([count, w]) => {
      const taken = Math.min(count, left);
      left -= taken;
      inK += taken * w;
      return [taken, w];
    });
    let reached = 0, count = 0, done = false;
    const probabilities = [];
    limited.forEach(([taken, w], i) => {
      const needed = p >= 1 ? taken : Math.min(taken, Math.max(0, Math.ceil((p * inK - reached) / w - 1e-9)));
      const here = done ? 0 : needed;
      reached += here * w;
      count += here;
      if (p < 1 && reached >= p * inK - 1e-12 * inK) done = true;
      if (i < weights.length) probabilities.push(here ? w : 0);
    });
    return { count, mass: reached / all, probabilities: probabilities.map((w) => w / reached) };
  }

  function tape(step) {
    if (step.random === null) {
      return element("p", { class: "note" }, "No random number decided: the token follows from the logits alone.");
    }
    const [low, high] = step.interval;
    const line = element("div", { class: "tape" });
    line.append(element("i", { style: `left:${100 * low}%;width:${100 * (high - low)}%` }));
    line.append(element("b", { style: `left:${100 * step.random}%` }));
    const text = `The random number ${step.random.toFixed(6)} fell into ${low.toFixed(6)} to ${high.toFixed(6)}, the part of ` +
      "the token when the probabilities are laid side by side in the order of their ids.";
    return element("div", {}, element("p", { class: "note" }, text), line);
  }

  function stages(step) {
    const table = element("table");
    table.append(element("tr", {}, ...["stage", "tokens left", "mass kept", "entropy behind it"].map((t) => element("th", {}, t))));
    for (const [, name, count, mass, entropy] of step.stages) {
      const cells = [name, count.toLocaleString("en"), percent(mass), entropy.toFixed(3) + " nats"];
      table.append(element("tr", {}, ...cells.map((t) => element("td", {}, t))));
    }
    return element("div", { class: "card scroll" }, table);
  }

  function slider(name, title, min, max, step, shown) {
    const value = element("output", {}, shown(settings[name]));
    const input = element("input", { type: "range", min, max, step, "aria-label": title });
    input.value = settings[name];
    input.addEventListener("input", () => {
      settings[name] = Number(input.value);
      value.textContent = shown(settings[name]);
      recompute();
    });
    return element("label", {}, title, value, input);
  }

  let current = 0;
  let rows = null;
  let summary = null;

  function recompute() {
    const step = steps[current];
    const now = kept(step);
    summary.textContent = now.mass === null
      ? "At temperature 0 the largest logit is chosen."
      : `Kept now: ${now.count.toLocaleString("en")} tokens with ${percent(now.mass)} of the mass at this temperature` +
        (now.count > step.logits.length ? " (beyond the largest 200 logits, by a histogram)" : "") + ".";
    rows.replaceChildren(element("tr", {}, ...["", "token", "id", "logit", "drawn with", "at the sliders", "", "removed by"].map((t) => element("th", {}, t))));
    const listed = step.logits.slice(0, SHOWN);
    if (!listed.some(([id]) => id === step.id)) listed.push(...step.logits.filter(([id]) => id === step.id));
    const most = Math.max(...listed.map(([id], i) => Math.max(step.drawnOf[id] ?? 0, now.probabilities[i] ?? 0)), 1e-12);
    listed.forEach(([id, text, logit]) => {
      const rank = step.logits.findIndex(([other]) => other === id);
      const drawn = step.drawnOf[id];
      const probability = now.probabilities[rank] ?? 0;
      const bars = element("td", { class: "bar" });
      for (const share of [drawn ?? 0, probability]) {
        bars.append(element("i", { style: share ? `width:${(100 * share) / most}%` : "visibility:hidden" }));
      }
      const removed = step.removed[id] ?? "";
      const row = element("tr", { class: (id === step.id ? "chosen" : "") + (probability === 0 ? " gone" : "") },
        element("td", {}, id === step.id ? "\u25b6" : ""), element("td", { class: "token" }, visible(text)), element("td", {}, String(id)),
        element("td", {}, logit.toFixed(3)), element("td", {}, drawn === undefined ? "" : percent(drawn)),
        element("td", {}, percent(probability)), bars, element("td", {}, removed));
      rows.append(row);
    });
  }

  function show(index) {
    current = index;
    const step = steps[index];
    root.querySelectorAll(".text button").forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
    rows = element("table");
    summary = element("p");
    const head = `\u201c${visible(step.text)}\u201d, token ${step.id} at position ${step.position}: probability ${percent(step.p)} for the ` +
      `model (rank ${step.rank.toLocaleString("en")}), drawn with ${percent(step.drawn)}; entropy ${step.entropy.toFixed(3)} nats.`;
    const size = Math.max(100, settings.k);
    detail.replaceChildren(
      element("h2", {}, "Candidates"), element("p", {}, head), stages(step), tape(step),
      element("div", { class: "card sliders" },
        slider("temperature", "temperature", 0, Math.max(2, settings.temperature), 0.01, (x) => x.toFixed(2)),
        slider("k", "top-k (0 keeps all)", 0, size, 1, (x) => (x === 0 ? "all" : String(x))),
        slider("p", "top-p", 0.01, 1, 0.01, (x) => x.toFixed(2))),
      summary,
      element("p", { class: "note" }, element("i", { class: "swatch" }), "drawn with", element("i", { class: "swatch now" }), "at the sliders"),
      element("div", { class: "card scroll" }, rows));
    recompute();
  }

  root.querySelectorAll(".text button").forEach((button) => button.addEventListener("click", () => show(Number(button.dataset.step))));
  root.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || event.target.tagName === "INPUT" || !steps[current + move]) return;
    show(current + move);
    root.querySelectorAll(".text button")[current].focus();
  });
  if (steps.length) show(steps.reduce((best, step, i) => (step.entropy > steps[best].entropy ? i : best), 0));
})();
