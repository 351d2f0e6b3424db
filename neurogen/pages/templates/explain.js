// Shows the candidates of the token clicked, and what temperature, k and p would have kept of the same logits.
  const root = document.currentScript.closest(".ng-explain");
  const { own, start, order, sampler, steps } = JSON.parse(root.querySelector("script.data").textContent);
  const detail = root.querySelector(".detail");
  const SHOWN = 40;
  const SETTINGS = ["temperature", "k", "p"];
  const settings = { ...start };
  const percent = (x) => (x === null || x === undefined ? "not told" : x === 0 ? "0 %" : x < 0.00001 ? "< 0.001 %" : (100 * x).toPrecision(3) + " %").replace(" ", "\u00a0");

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const visible = (text) => (text === "" ? "\u2400" : text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5"));

  // What the run itself kept, where the sliders stand at its own settings; else what they keep of the same logits.
  const atOwn = () => own !== null && SETTINGS.every((name) => settings[name] === own[name]);
  function kept(step) {
    const now = keptOf(step, settings, order);
    if (!atOwn() || step.stages.length === 0) return { ...now, ran: false };
    const mass = step.stages.reduce((product, [kind, , , share]) => (kind === "truncation" ? product * share : product), 1);
    return { ...now, count: step.kept, mass: now.mass === null ? null : mass, ran: true };
  }

  function tape(step) {
    if (step.random === null) {
      const why = step.drawn === null ? "A sampler with memory drew it, which does not tell what it kept of this step."
        : "No random number decided: the token follows from the logits alone.";
      return element("p", { class: "note" }, why);
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
    const snapped = input.value;
    input.addEventListener("input", () => {
      // The slider has steps: where the run's own value lies between two, the nearest one stands for it.
      settings[name] = input.value === snapped ? start[name] : Number(input.value);
      value.textContent = shown(settings[name]);
      recompute();
    });
    return element("label", {}, title, value, input);
  }

  const shown = (x) => String(Number(x.toPrecision(6)));
  let current = 0;
  let rows = null;
  let summary = null;

  function recompute() {
    const step = steps[current];
    const now = kept(step);
    summary.textContent = now.mass === null
      ? "At temperature 0 the largest logit is chosen."
      : `Kept now: ${now.count.toLocaleString("en")} tokens with ${percent(now.mass)} of the mass at this temperature.`;
    if (step.values === null && !now.ran && now.count > step.logits.length) {
      summary.textContent += ` This page holds the largest ${step.logits.length} logits of each step and a histogram of the others: ` +
        "the count is nearly right, not exact.";
    }
    if (own === null) {
      summary.textContent += ` The sliders know temperature, top-k and top-p alone, not what ${sampler} did: that is in the table above.`;
    }
    rows.replaceChildren(element("tr", {}, ...["", "token", "id", "logit", "drawn with", "at the sliders", "", "removed by"].map((t) => element("th", {}, t))));
    const listed = step.logits.slice(0, SHOWN).map((one, place) => [...one, place]);
    if (!listed.some(([id]) => id === step.id)) listed.push([...step.chosen, step.place]);
    const most = Math.max(...listed.map(([id, , , place]) => Math.max(step.drawnOf[id] ?? 0, now.probabilities[place] ?? 0)), 1e-12);
    listed.forEach(([id, text, logit, place]) => {
      const drawn = step.drawnOf[id];
      const probability = now.ran && typeof drawn === "number" ? drawn : now.probabilities[place] ?? 0;
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
        slider("temperature", "temperature", 0, Math.max(2, settings.temperature), 0.01, shown),
        slider("k", "top-k (0 keeps all)", 0, size, 1, (x) => (x === 0 ? "all" : String(x))),
        slider("p", "top-p", 0.01, 1, 0.01, shown)),
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
