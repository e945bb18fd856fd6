/* How Gumbel-Softmax feels: draws in the triangle of three categories, and the handles that move them.

   The noise g of each draw is made once, from a seed, and kept. Whatever moves afterwards is a function of that noise,
   of the logits and of tau: this is the reparameterisation that the chapter on sampling is about. */
(() => {
  "use strict";

  // --- The mathematics: pure functions, named as in jointvae/categorical.py ------------------------------------------

  const TINY = 2.2250738585072014e-308; // the smallest normal double, as in the package

  /** The logits less the logarithm of the sum of their exponentials. */
  function logSoftmax(logits) {
    const top = Math.max(...logits); // taken out, so that exp can't overflow
    const total = logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0);
    return logits.map((logit) => logit - top - Math.log(total));
  }

  /** Probabilities that add up to one. */
  function softmax(logits) {
    return logSoftmax(logits).map(Math.exp);
  }

  /** A relaxed draw: softmax((log pi + g) / tau). */
  function relax(logits, g, tau) {
    if (!(tau > 0)) throw new RangeError(`tau must be above 0, not ${tau}`);
    return softmax(logSoftmax(logits).map((logPi, k) => (logPi + g[k]) / tau));
  }

  /** The index of the largest of logits plus noise: an exact draw from softmax(logits). */
  function winner(logits, g) {
    const a = logits.map((logit, k) => logit + g[k]);
    return a.indexOf(Math.max(...a));
  }

  /** A one-hot vector. */
  function oneHot(k, n) {
    return Array.from({ length: n }, (_, j) => (j === k ? 1 : 0));
  }

  /** A stream of uniform numbers on [0, 1) with 53 random bits, the same for the same seed.

      A counter goes round in steps of the golden ratio, and each of its values is scrambled (by the finaliser of
      MurmurHash3). */
  function uniforms(seed) {
    let counter = scramble(seed);
    const word = () => scramble((counter = (counter + 0x9e3779b9) | 0));
    return () => ((word() >>> 5) * 2 ** 26 + (word() >>> 6)) / 2 ** 53;
  }

  function scramble(word) {
    word = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
    word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35);
    return (word ^ (word >>> 16)) >>> 0;
  }

  /** Gumbel(0, 1) from a uniform number: -log E with E exponential; an E of exactly 0 would give an infinity. */
  function gumbel(u) {
    return -Math.log(Math.max(-Math.log1p(-u), TINY));
  }

  // --- The picture's plane -------------------------------------------------------------------------------------------

  const N = 3;
  const SIDE = 320;
  const HEIGHT = (SIDE * Math.sqrt(3)) / 2;
  const [LEFT, TOP, BOX] = [56, 56, [432, 370]];
  // Categories 1, 2 and 3 as in the figures of the book: left, right, top.
  const CORNERS = [[LEFT, TOP + HEIGHT], [LEFT + SIDE, TOP + HEIGHT], [LEFT + SIDE / 2, TOP]];
  const CENTRE = toPlane([1 / 3, 1 / 3, 1 / 3]);

  /** A point of the simplex as coordinates in the picture. */
  function toPlane(p) {
    return [0, 1].map((axis) => p.reduce((sum, share, k) => sum + share * CORNERS[k][axis], 0));
  }

  /** The point of the simplex at a place in the picture, kept off the edges, where a logit would be infinite. */
  function fromPlane(x, y) {
    const third = (CORNERS[0][1] - y) / HEIGHT;
    const second = (x - LEFT) / SIDE - third / 2;
    const inside = normalised([1 - second - third, second, third].map((share) => Math.max(share, 0)));
    return normalised(inside.map((share) => Math.max(share, LEAST_PI)));
  }

  function normalised(weights) {
    const total = weights.reduce((sum, weight) => sum + weight);
    return weights.map((weight) => weight / total);
  }

  /** The direction from the centre to a point; at the centre itself, down. */
  function outward([x, y]) {
    const away = [x - CENTRE[0], y - CENTRE[1]];
    const far = Math.hypot(...away);
    return far < 1 ? [0, 1] : away.map((value) => value / far);
  }

  /** The point that is so far from another in a direction. */
  function along([x, y], [dx, dy], far) {
    return [x + far * dx, y + far * dy];
  }

  /** Where in its corner the draw of this rank lies: a sunflower, whose area grows as the number of draws. */
  function inPile(k, rank, spacing) {
    const angle = rank * Math.PI * (3 - Math.sqrt(5));
    return along(CORNERS[k], [Math.cos(angle), Math.sin(angle)], spacing * Math.sqrt(rank));
  }

  // --- What the reader can set ---------------------------------------------------------------------------------------

  const LEAST_PI = 0.01; // of a dragged point
  const LOGIT = { least: -5, most: 5, step: 0.01 };
  const TAU = { least: 0.05, most: 10, model: 0.67, steps: 200 };
  const MOST_DRAWS = 2000;
  const FEW = 20; // below this many draws nothing is said about where they lie
  const PILE = 30; // the radius that a corner would have if all draws lay in it
  const PATIENCE = 400; // milliseconds without a change before the summary is read out
  const REACH = 16; // how near to a draw a click must be, to follow it
  const PROBS = [0.5, 0.3, 0.2]; // those of the chapter's figure
  const SEED = 2; // its first draw, which is followed from the start, lies away from corners and edges

  /** Logits with mean zero. */
  function centredLog(p) {
    const mean = p.reduce((sum, share) => sum + Math.log(share), 0) / N;
    return p.map((share) => Math.log(share) - mean);
  }

  /** tau at a step of its slider, which is logarithmic; the model's own tau can be met exactly. */
  function tauAt(step) {
    const tau = TAU.least * (TAU.most / TAU.least) ** (step / TAU.steps);
    return Math.round(stepOf(TAU.model)) === Number(step) ? TAU.model : Number(tau.toPrecision(3));
  }

  function stepOf(tau) {
    return (TAU.steps * Math.log(tau / TAU.least)) / Math.log(TAU.most / TAU.least);
  }

  /** All that the picture depends on. */
  function freshState() {
    return { logits: centredLog(PROBS), tau: TAU.model, view: "soft", seed: SEED, noise: [], followed: -1, said: "" };
  }

  /** Add draws: only their noise is kept. */
  function draw(state, count) {
    const room = Math.max(0, Math.min(count, MOST_DRAWS - state.noise.length));
    for (let i = 0; i < room; i++) state.noise.push(Array.from({ length: N }, () => gumbel(state.next())));
    if (room === 1) state.followed = state.noise.length - 1;
    else if (room > 1) state.followed = Math.max(state.followed, 0);
    state.said = room < count ? `No more than ${inWords(MOST_DRAWS)} draws fit.` : "";
  }

  /** Start the noise of a seed from its beginning, with this many draws. */
  function restart(state, seed, count) {
    Object.assign(state, { seed, next: uniforms(seed), noise: [], followed: -1, said: "" });
    draw(state, count);
  }

  /** What the draws come to at the present logits, tau and view. */
  function evaluate(state) {
    const relaxed = state.noise.map((g) => relax(state.logits, g, state.tau));
    const winners = state.noise.map((g) => winner(state.logits, g));
    const counts = Array(N).fill(0);
    const spacing = PILE / Math.sqrt(Math.max(1, winners.length));
    const places = winners.map((k, i) => {
      const rank = counts[k]++;
      return state.view === "soft" ? toPlane(relaxed[i]) : inPile(k, rank, spacing);
    });
    const total = Math.max(1, winners.length);
    const shares = counts.map((count) => count / total);
    const softMean = PROBS.map((_, k) => relaxed.reduce((sum, p) => sum + p[k], 0) / total);
    const pi = softmax(state.logits);
    // Of the share that a fair count of this many draws gives.
    const errors = pi.map((p) => Math.sqrt((p * (1 - p)) / total));
    return { relaxed, winners, places, shares, errors, pi, mean: state.view === "soft" ? softMean : shares };
  }

  // --- Words ---------------------------------------------------------------------------------------------------------

  const digits = (number, places = 2) => number.toFixed(places).replace("-", "−");
  const inWords = (number) => number.toLocaleString("en");
  const several = (numbers, places = 2) => numbers.map((number) => digits(number, places)).join(", ");
  const showTau = (tau) => String(Number(tau.toPrecision(2)));

  /** What the picture shows, in sentences. */
  function summary(state, shown) {
    const count = state.noise.length;
    if (count === 0) return `${state.said} No draws yet. π is ${several(shown.pi)}.`.trim();
    const soft = state.view === "soft";
    const sure = shown.relaxed.reduce((sum, p) => sum + Math.max(...p), 0) / count;
    const spread =
      sure > 0.93 ? "Most lie near a corner." : sure < 0.48 ? "They crowd the centre." : "They fill the triangle.";
    const where = soft ? (count < FEW ? "" : spread) : "Each lies in the corner of its largest entry.";
    const off = Math.hypot(...shown.mean.map((mean, k) => mean - shown.pi[k]));
    return [
      state.said,
      `${inWords(count)} ${soft ? "relaxed" : "hard"} ${count === 1 ? "draw" : "draws"} at τ = ${showTau(state.tau)}.`,
      where,
      `The mean is ${several(shown.mean)}; π is ${several(shown.pi)}: ${digits(off)} apart.`,
      soft ? `The largest entry is the first, second, third in a share of ${several(shown.shares)}.` : "",
    ].filter(Boolean).join(" ");
  }

  // --- The page ------------------------------------------------------------------------------------------------------

  const SVG = "http://www.w3.org/2000/svg";
  let made = 0; // widgets so far, for ids that are used once

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }
  const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const set = (element, attributes) => fill(element, attributes, []);
  const polygon = (points) => points.map((point) => point.map((value) => value.toFixed(1)).join(",")).join(" ");
  const at = ([x, y]) => `translate(${x.toFixed(2)} ${y.toFixed(2)})`;

  /** The triangle: where each category is the largest entry, a label per corner, and what moves. */
  function makePicture(id) {
    const middles = CORNERS.map((corner, k) => [0, 1].map((axis) => (corner[axis] + CORNERS[(k + 1) % N][axis]) / 2));
    const regions = CORNERS.map((corner, k) =>
      svg("polygon", {
        class: `simplex-region simplex-${k + 1}`,
        points: polygon([corner, middles[k], CENTRE, middles[(k + 2) % N]]),
      }));
    const labels = CORNERS.map((_, k) => svg("text", { class: "simplex-corner" }, String(k + 1)));
    const parts = {
      labels,
      path: svg("polyline", { class: "simplex-path" }),
      draws: svg("g", { class: "simplex-draws" }),
      followed: svg("circle", { r: 7, class: "simplex-followed" }),
      mean: svg("g", { class: "simplex-mean" }, svg("path", { d: "M0-7.5 7.5 0 0 7.5-7.5 0Z" })),
      pi: svg("g", { class: "simplex-pi" },
        svg("circle", { r: 24, class: "simplex-grip" }), svg("circle", { r: 12, class: "simplex-halo" }),
        svg("circle", { r: 12, class: "simplex-ring" }), svg("text", {}, "π")),
    };
    parts.root = svg("svg", {
      viewBox: `0 0 ${BOX.join(" ")}`, role: "img", "aria-label": "Triangle of three categories with the draws in it",
      "aria-describedby": `${id}-summary`,
    }, ...regions, svg("polygon", { class: "simplex-outline", points: polygon(CORNERS) }), parts.path, parts.draws,
    parts.followed, parts.pi, parts.mean, ...labels);
    return parts;
  }

  /** A labelled slider with what it stands at. */
  function makeSlider(id, label, range, extra = {}) {
    const input = html("input", { type: "range", id, ...range, ...extra });
    // Not an output element: that would be read out at each step, and the slider's own text says the same.
    const output = html("span", { class: "simplex-value", "aria-hidden": "true" });
    const row = html("div", { class: "simplex-slider" }, html("label", { for: id }, label), output, input);
    return { input, output, row };
  }

  const BUTTONS = {
    one: "Draw 1", many: "Draw 200", same: "Same noise again", other: "New noise", clear: "Clear", reset: "Start over",
  };
  const VIEWS = { soft: "soft: the relaxed draw c̃", hard: "hard: one-hot, as in straight-through" };

  /** All that can be operated. */
  function makeControls(id) {
    const range = { min: LOGIT.least, max: LOGIT.most, step: LOGIT.step };
    const logits = PROBS.map((_, k) =>
      makeSlider(`${id}-logit-${k + 1}`, `logit ${k + 1}`, range, { class: `simplex-${k + 1}` }));
    const tau = makeSlider(`${id}-tau`, "temperature τ", { min: 0, max: TAU.steps, step: 1 });
    const views = Object.entries(VIEWS).map(([view, text]) => ({
      view, input: html("input", { type: "radio", name: `${id}-view`, value: view, id: `${id}-${view}` }), text,
    }));
    const buttons = Object.fromEntries(Object.entries(BUTTONS).map(([name, text]) =>
      [name, html("button", { type: "button", "data-do": name }, text)]));
    const group = (legend, ...children) => html("fieldset", {}, html("legend", {}, legend), ...children);
    const ends = html("div", { class: "simplex-ends", "aria-hidden": "true" },
      html("span", {}, `cold, ${TAU.least}`), html("span", {}, `hot, ${TAU.most}`));
    const root = html("div", { class: "simplex-controls" },
      group("Temperature", tau.row, ends),
      group("Probabilities π, by their logits", ...logits.map((logit) => logit.row)),
      group("What is shown of each draw", ...views.map(({ input, text }) =>
        html("label", { class: "simplex-choice", for: input.id }, input, html("span", {}, text)))),
      group("Draws", html("div", { class: "simplex-buttons" }, ...Object.values(buttons))));
    return { root, logits, tau, views, buttons };
  }

  /** A table with a caption; its cells are filled by what they show. */
  function makeTable(name, caption, heads, rows) {
    const cells = rows.map(() => heads.slice(1).map(() => html("td")));
    const head = html("tr", {}, ...heads.map((text) => html("th", { scope: "col" }, text)));
    const body = rows.map((text, k) => html("tr", {}, html("th", { scope: "row" }, text), ...cells[k]));
    const root = html("table", { class: `simplex-table ${name}` }, caption, html("thead", {}, head),
      html("tbody", {}, ...body));
    return { root, cells };
  }

  /** For each category a bar for its share, a whisker of two standard errors, and marks for pi and the mean. */
  function makeShares() {
    const table = makeTable("simplex-shares", html("caption", {}, "How often entry k is the largest"),
      ["k", "share ± 2 std. errors", "share", "std. error", "π", "mean"], ["1", "2", "3"]);
    table.bars = table.cells.map(([cell], k) => {
      const bar = Object.fromEntries(["fill", "whisker", "pi", "mean"].map((part) =>
        [part, html("span", { class: `simplex-bar-${part} simplex-${k + 1}` })]));
      cell.append(html("div", { class: "simplex-bar", "aria-hidden": "true" }, ...Object.values(bar)));
      return bar;
    });
    return table;
  }

  /** The numbers of one draw: the noise that stays, and what is made of it. */
  function makeFollowed() {
    const button = html("button", { type: "button", "data-do": "follow" }, "Follow another");
    const caption = html("caption", {}, html("span", {}, "The ringed draw"), button);
    const table = makeTable("simplex-one", caption, ["k", "g, kept", "log π + g", "relaxed", "hard"], ["1", "2", "3"]);
    return { ...table, button };
  }

  function makeLegend() {
    const items = [["ring", "π: drag it"], ["diamond", "mean of the draws"], ["dot", "one draw, and its path over τ"]];
    return html("ul", { class: "simplex-legend", "aria-hidden": "true" }, ...items.map(([name, text]) =>
      html("li", {}, html("span", { class: `simplex-key-${name}` }), text)));
  }

  // --- From state to page --------------------------------------------------------------------------------------------

  function showPicture(picture, state, shown) {
    const dots = picture.draws;
    while (dots.childElementCount > shown.places.length) dots.lastChild.remove();
    while (dots.childElementCount < shown.places.length) dots.append(svg("circle", { r: 3.3 }));
    shown.places.forEach(([x, y], i) => set(dots.children[i], {
      cx: x.toFixed(2), cy: y.toFixed(2), class: `simplex-${shown.winners[i] + 1}`,
    }));
    const off = state.view === "soft" ? 24 : PILE + 16; // the piles of the hard view need room
    picture.labels.forEach((label, k) => set(label, { transform: at(along(CORNERS[k], outward(CORNERS[k]), off)) }));
    const pi = toPlane(shown.pi);
    set(picture.pi, { transform: at(pi) });
    set(picture.pi.lastChild, { transform: at(along([0, 0], outward(pi), 25)) }); // the mean comes from the other side
    const some = state.noise.length > 0;
    for (const part of [picture.mean, picture.followed, picture.path]) part.toggleAttribute("hidden", !some);
    if (!some) return;
    set(picture.mean, { transform: at(toPlane(shown.mean)) });
    const g = state.noise[state.followed];
    set(picture.followed, {
      transform: at(toPlane(shown.relaxed[state.followed])),
      class: `simplex-followed simplex-${shown.winners[state.followed] + 1}`,
    });
    const steps = Array.from({ length: 61 }, (_, i) => tauAt((i * TAU.steps) / 60));
    set(picture.path, { points: polygon(steps.map((tau) => toPlane(relax(state.logits, g, tau)))) });
  }

  function showControls(controls, state, shown) {
    controls.logits.forEach(({ input, output }, k) => {
      input.value = state.logits[k];
      const logit = digits(state.logits[k]);
      output.textContent = `${logit}, π = ${digits(shown.pi[k])}`;
      input.setAttribute("aria-valuetext", `${logit}, probability ${digits(shown.pi[k])}`);
    });
    controls.tau.input.value = Math.round(stepOf(state.tau));
    controls.tau.output.textContent = showTau(state.tau);
    controls.tau.input.setAttribute("aria-valuetext", showTau(state.tau));
    controls.views.forEach(({ view, input }) => (input.checked = view === state.view));
  }

  function showShares(shares, state, shown) {
    const some = state.noise.length > 0;
    const percent = (share) => `${(100 * Math.min(1, Math.max(0, share))).toFixed(2)}%`;
    shares.bars.forEach((bar, k) => {
      const [share, error] = [shown.shares[k], shown.errors[k]];
      bar.fill.style.width = percent(share);
      bar.whisker.style.left = percent(share - 2 * error);
      bar.whisker.style.right = percent(1 - share - 2 * error);
      bar.pi.style.left = percent(shown.pi[k]);
      bar.mean.style.left = percent(shown.mean[k]);
      bar.whisker.hidden = bar.mean.hidden = !some;
      const numbers = [share, error, shown.pi[k], shown.mean[k]];
      numbers.forEach((number, j) => {
        shares.cells[k][j + 1].textContent = some || j === 2 ? digits(number, j === 1 ? 3 : 2) : "–";
      });
    });
  }

  function showFollowed(followed, state, shown) {
    const i = state.followed;
    const columns = i < 0 ? null : [
      state.noise[i], logSoftmax(state.logits).map((logPi, k) => logPi + state.noise[i][k]), shown.relaxed[i],
    ];
    followed.cells.forEach((cells, k) => {
      cells.forEach((cell, j) => (cell.textContent = columns === null ? "–" : j < 3 ? digits(columns[j][k]) : ""));
      if (columns !== null) cells[3].textContent = oneHot(shown.winners[i], N)[k];
    });
  }

  // --- Together ------------------------------------------------------------------------------------------------------

  /** Put a widget into its container, in place of the text that stands there for readers without JavaScript. */
  function mount(container) {
    const id = `simplex-${++made}`;
    const state = freshState();
    const [picture, controls, shares, followed] = [makePicture(id), makeControls(id), makeShares(), makeFollowed()];
    const words = html("p", { class: "simplex-summary", id: `${id}-summary`, role: "status", "aria-live": "polite" });
    let waiting;

    /** Show the state; a change of view or of noise glides, what the reader drags follows at once. */
    function show(glide = false) {
      const shown = evaluate(state);
      picture.root.classList.toggle("simplex-glide", glide);
      showPicture(picture, state, shown);
      showControls(controls, state, shown);
      showShares(shares, state, shown);
      showFollowed(followed, state, shown);
      clearTimeout(waiting);
      const say = () => (words.textContent = summary(state, shown));
      if (words.textContent === "") say(); // before it is on the page, so that nothing is read out unasked
      else waiting = setTimeout(say, PATIENCE); // once a slider rests, not at each of its steps
    }

    let lately = 0; // how many draws there were before the last Clear
    const count = () => state.noise.length || lately;
    const actions = {
      one: () => draw(state, 1),
      many: () => draw(state, 200),
      same() {
        restart(state, state.seed, count());
        state.said = "The same noise again: each draw falls where it fell.";
      },
      other() {
        restart(state, state.seed + 1, count());
        state.said = "New noise: each draw falls somewhere else.";
      },
      clear() {
        lately = count();
        restart(state, state.seed, 0);
      },
      reset() {
        Object.assign(state, freshState());
        restart(state, state.seed, 200);
      },
      follow() {
        if (state.noise.length) state.followed = (state.followed + 1) % state.noise.length;
      },
    };
    const touch = (change, glide = false) => () => {
      state.said = "";
      change();
      show(glide);
    };

    for (const button of [...Object.values(controls.buttons), followed.button]) {
      button.addEventListener("click", touch(actions[button.dataset.do], button.dataset.do === "reset"));
    }
    controls.logits.forEach(({ input }, k) => input.addEventListener("input", touch(() => {
      state.logits[k] = Number(input.value);
    })));
    controls.tau.input.addEventListener("input", touch(() => (state.tau = tauAt(controls.tau.input.value))));
    for (const { view, input } of controls.views) {
      input.addEventListener("change", touch(() => (state.view = view), true));
    }

    const inPicture = (event) =>
      new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.root.getScreenCTM().inverse());
    picture.pi.addEventListener("pointerdown", (event) => {
      picture.pi.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    picture.pi.addEventListener("pointermove", (event) => {
      if (!picture.pi.hasPointerCapture(event.pointerId)) return;
      const { x, y } = inPicture(event);
      touch(() => (state.logits = centredLog(fromPlane(x, y))))();
    });
    picture.root.addEventListener("click", (event) => {
      if (picture.pi.contains(event.target)) return;
      const { x, y } = inPicture(event);
      const distances = evaluate(state).places.map((place) => Math.hypot(place[0] - x, place[1] - y));
      const nearest = distances.indexOf(Math.min(...distances));
      if (distances[nearest] < REACH) touch(() => (state.followed = nearest))();
    });

    restart(state, state.seed, 200);
    show();
    set(container, { role: "group", "aria-labelledby": `${id}-title` });
    container.replaceChildren(
      html("p", { class: "simplex-title", id: `${id}-title` }, "How Gumbel-Softmax feels"),
      html("div", { class: "simplex-columns" },
        html("div", { class: "simplex-view" }, picture.root, makeLegend(), words),
        controls.root, shares.root, followed.root));
  }

  /** Mount all that the page has and that is not mounted yet. */
  function start() {
    for (const container of document.querySelectorAll("[data-simplex]:not([data-mounted])")) {
      container.setAttribute("data-mounted", "");
      mount(container);
    }
  }

  window.JointVAESimplex = Object.freeze({ logSoftmax, softmax, relax, winner, uniforms, gumbel, start });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
