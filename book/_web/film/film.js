/* The player of a training's film: pictures of the latents after each epoch, above the curves of the losses.

   The page holds the last picture and the data (book/_ext/film_widget.py). This script puts a canvas in the picture's
   place, and adds controls and curves. Nothing moves until the reader asks for it; where the reader's system asks for
   less motion, the film is stepped through and never plays. */
(() => {
  "use strict";

  const SPEEDS = { slow: 3, normal: 10, fast: 25 }; // frames per second
  const LESS_MOTION = matchMedia("(prefers-reduced-motion: reduce)");
  const LESS = "Your system asks for less motion, so the film does not play: step through it, or move the slider.";
  const ICONS = {
    back: "M3 1h3v14H3zM15 1v14L6 8z",
    play: "M2 1l13 7-13 7z",
    pause: "M2 1h4v14H2zM10 1h4v14h-4z",
    forward: "M1 1l9 7-9 7zM10 1h3v14h-3z",
  };
  const CHART = { left: 36, right: 16, top: 18, bottom: 32 };
  const SIZES = { beside: { width: 260, height: 150 }, below: { width: 350, height: 120 } }; // flat where they are stacked
  const CHARTS = [
    { curve: "reconstruction", title: "<em>Reconstruction</em>", name: "reconstruction" },
    { curve: "kl_z", capacity: "C_z", title: "<em>KL<sub>z</sub></em>", name: "KL of z" },
    { curve: "kl_c", capacity: "C_c", title: "<em>KL<sub>c</sub></em>", name: "KL of c" },
  ];

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function shape(tag, attributes = {}, text = "") {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  }

  function icon(name) {
    const made = shape("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" });
    made.append(shape("path", { d: ICONS[name] }));
    return made;
  }

  /* Round numbers from `low` to `high`, about `count` of them. */
  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map(factor => factor * power).find(candidate => candidate >= rough);
    const [first, last] = [Math.ceil(low / step - 1e-9), Math.floor(high / step + 1e-9)];
    return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(6)));
  }

  const grouped = number => number.toLocaleString("en");

  /* A curve over the steps of the training, its capacity dashed, and a cursor at the shown epoch. */
  class Chart {
    constructor(curves, size, { curve, capacity, title, name }, seek) {
      this.size = size;
      this.values = curves[curve];
      this.capacity = curves[capacity];
      this.steps = curves.step.map(step => step / 1000);
      const all = [...this.values, ...(this.capacity || [])];
      const [low, high] = capacity ? [0, Math.max(...all, 0.1)] : [Math.min(...all), Math.max(...all)];
      const room = 0.06 * (high - low || 1);
      const end = this.steps.at(-1);
      const { width, height, left, right, top, bottom } = { ...CHART, ...this.size };
      this.x = step => left + (step / end) * (width - left - right);
      const [floor, ceiling] = [capacity ? 0 : low - room, high + room];
      this.y = value => height - bottom - ((value - floor) / (ceiling - floor)) * (height - top - bottom);
      this.svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.describe(name) });
      this.axes(ticks(0, end, 4), ticks(low, high, 3));
      if (this.capacity) this.svg.append(this.line(this.capacity, { class: "capacity" }));
      this.svg.append(this.line(this.values, { class: "curve", style: `stroke: var(--film-${curve})` }));
      this.cursor = shape("line", { class: "cursor", y1: top - 4, y2: height - bottom });
      this.dot = shape("circle", { class: "dot", r: 4.5, style: `fill: var(--film-${curve})` });
      this.svg.append(this.cursor, this.dot);
      const heading = element("p");
      heading.innerHTML = this.capacity ? `${title}, dashed: <em>C<sub>${capacity.slice(2)}</sub></em>` : title;
      this.element = element("div", { class: "film-chart" }, heading, this.svg);
      this.listen(seek);
    }

    describe(name) {
      const [first, last] = [this.values[0], this.values.at(-1)].map(value => value.toFixed(2));
      const range = `from ${first} nats in the first epoch to ${last} in the last`;
      return `Curve of the ${name}, ${range}${this.capacity ? ", with its capacity dashed" : ""}.`;
    }

    axes(horizontal, vertical) {
      const { width, height, left, right, top, bottom } = { ...CHART, ...this.size };
      const floor = height - bottom;
      for (const value of vertical) {
        this.svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: this.y(value), y2: this.y(value) }));
        this.svg.append(shape("text", { x: left - 5, y: this.y(value) + 4, "text-anchor": "end" }, String(value)));
      }
      for (const value of horizontal) {
        this.svg.append(shape("line", { class: "axis", x1: this.x(value), x2: this.x(value), y1: floor, y2: floor + 3 }));
        this.svg.append(shape("text", { x: this.x(value), y: floor + 15, "text-anchor": "middle" }, String(value)));
      }
      this.svg.append(shape("path", { class: "axis", d: `M${left} ${top}V${floor}H${width - right}` }));
      this.svg.append(shape("text", { x: 2, y: 10 }, "nats"));
      this.svg.append(shape("text", { x: width - right, y: height - 3, "text-anchor": "end" }, "thousand steps"));
    }

    line(values, attributes) {
      const points = values.map((value, i) => `${this.x(this.steps[i]).toFixed(1)},${this.y(value).toFixed(1)}`);
      return shape("polyline", { ...attributes, points: points.join(" ") });
    }

    /* A press on the chart, or a drag along it, goes to the epoch there. */
    listen(seek) {
      const go = event => {
        if (event.type === "pointermove" && !event.buttons) return;
        const box = this.svg.getBoundingClientRect();
        const at = ((event.clientX - box.left) / box.width) * this.size.width;
        seek(((at - CHART.left) / (this.size.width - CHART.left - CHART.right)) * this.steps.at(-1) * 1000);
      };
      this.svg.addEventListener("pointerdown", go);
      this.svg.addEventListener("pointermove", go);
    }

    move(epoch) {
      const x = this.x(epoch ? this.steps[epoch - 1] : 0);
      this.cursor.setAttribute("x1", x);
      this.cursor.setAttribute("x2", x);
      this.dot.style.display = epoch ? "" : "none"; // nothing was measured before the first epoch
      if (!epoch) return;
      this.dot.setAttribute("cx", x);
      this.dot.setAttribute("cy", this.y(this.values[epoch - 1]));
    }
  }

  class Player {
    constructor(place) {
      this.place = place;
      this.data = JSON.parse(place.querySelector(".film-data").textContent);
      this.last = this.data.epochs.length - 1;
      this.frame = this.last; // the picture that the page shows anyway
      this.sheets = null; // not asked for before the film comes into view
      this.playing = false;
      this.build();
      this.show(this.frame);
      new IntersectionObserver(entries => this.seen(entries.at(-1).isIntersecting), { rootMargin: "200px" }).observe(place);
      document.addEventListener("visibilitychange", () => document.hidden && this.pause());
    }

    build() {
      const { rows, side, gap, columns, curves } = this.data;
      const size = this.place.clientWidth < 480 ? SIZES.below : SIZES.beside;
      const seek = step => this.seek(step);
      this.poster = this.place.querySelector(".film-poster");
      this.screen = element("canvas", { class: "film-screen", role: "img" });
      [this.screen.width, this.screen.height] = [columns, rows.length].map(tiles => tiles * (side + gap) - gap);
      this.screen.hidden = true;
      this.poster.after(this.screen);
      this.nats = [...this.place.querySelectorAll(".film-number")];
      this.charts = CHARTS.filter(chart => curves[chart.curve]).map(chart => new Chart(curves, size, chart, seek));
      this.summary = element("p", { class: "film-summary", "aria-live": "polite" });
      this.place.querySelector(".film-player").append(
        this.controls(), this.slider, element("div", { class: "film-charts" }, ...this.charts.map(chart => chart.element)), this.summary,
      );
    }

    controls() {
      const button = (name, text, act) => {
        const made = element("button", { type: "button", class: `film-${name}` }, icon(name));
        if (name === "play") made.append(text);
        else made.setAttribute("aria-label", text);
        made.addEventListener("click", act);
        return made;
      };
      this.slider = element("input", { type: "range", class: "film-slider", min: 0, max: this.last, step: 1, "aria-label": "Epoch" });
      this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
      this.back = button("back", "One picture back", () => this.go(this.frame - 1));
      this.play = button("play", "Play", () => (this.playing ? this.pause() : this.start()));
      this.forward = button("forward", "One picture forward", () => this.go(this.frame + 1));
      this.speed = element("select", {}, ...Object.keys(SPEEDS).map(name => element("option", {}, name)));
      this.speed.value = "normal";
      this.speedLabel = element("label", {}, "Speed", this.speed);
      this.lessMotion = element("p", { class: "film-less-motion" }, LESS);
      this.count = element("span", { class: "film-count", "aria-hidden": "true" });
      LESS_MOTION.addEventListener("change", () => this.heedMotion());
      this.heedMotion();
      const all = [this.back, this.play, this.forward, this.speedLabel, this.lessMotion, this.count];
      return element("div", { class: "film-controls" }, ...all);
    }

    heedMotion() {
      this.pause();
      this.play.hidden = this.speedLabel.hidden = LESS_MOTION.matches;
      this.lessMotion.hidden = !LESS_MOTION.matches;
    }

    seen(inView) {
      if (!inView) this.pause();
      else if (!this.sheets) this.load();
    }

    load() {
      this.sheets = this.data.sheets.map(({ file, frames }) => {
        const image = new Image();
        image.addEventListener("load", () => this.draw());
        image.addEventListener("error", () => this.fail(`${file} did not load, so the film stays at its last picture: build the book again.`));
        image.src = `${this.data.folder}/${file}`;
        return { image, frames };
      });
    }

    /* One sentence in place of the player, and the picture that came with the page. */
    fail(sentence) {
      this.pause();
      this.failed = true;
      this.show(this.last);
      this.screen.hidden = true;
      this.poster.hidden = false;
      for (const control of [this.back, this.play, this.forward, this.speed, this.slider]) control.disabled = true;
      const note = this.place.querySelector(".film-note");
      note.textContent = sentence;
      note.hidden = false;
    }

    start() {
      if (this.failed) return;
      if (this.frame === this.last) this.show(0);
      this.playing = true;
      this.label("pause", "Pause");
      this.summary.setAttribute("aria-live", "off"); // a voice can't follow a film
      let shown = performance.now();
      const tick = now => {
        if (!this.playing) return;
        if (now - shown >= 1000 / SPEEDS[this.speed.value] && this.ready(this.frame)) {
          shown = now;
          this.show(this.frame + 1);
        }
        if (this.frame === this.last) this.pause();
        else requestAnimationFrame(tick);
      };
      requestAnimationFrame(tick);
    }

    pause() {
      if (!this.playing) return;
      this.playing = false;
      this.label("play", "Play");
      this.summary.setAttribute("aria-live", "polite");
    }

    label(name, text) {
      this.play.replaceChildren(icon(name), text);
    }

    /* What the reader asks for: it ends the playing. */
    go(frame) {
      this.pause();
      if (!this.failed) this.show(frame);
    }

    seek(step) {
      const distances = this.data.steps.map(other => Math.abs(other - step));
      this.go(distances.indexOf(Math.min(...distances)));
    }

    show(frame) {
      this.frame = Math.min(Math.max(frame, 0), this.last);
      const { epochs, rows, alt } = this.data;
      const epoch = epochs[this.frame];
      this.slider.value = this.frame;
      this.slider.setAttribute("aria-valuetext", epoch ? `epoch ${epoch} of ${epochs.at(-1)}` : "before the training");
      this.count.textContent = epoch ? `epoch ${epoch} of ${epochs.at(-1)}` : "before the training";
      this.back.disabled = this.failed || this.frame === 0;
      this.forward.disabled = this.failed || this.frame === this.last;
      rows.forEach((row, i) => { this.nats[i].textContent = epoch ? row.nats[epoch - 1].toFixed(2) : "–"; });
      for (const chart of this.charts) chart.move(epoch);
      this.summary.textContent = this.inWords(epoch);
      this.screen.setAttribute("aria-label", `${epoch ? `After epoch ${epoch}` : "Before the training"}: ${alt}`);
      this.draw();
    }

    inWords(epoch) {
      if (!epoch) return "Before the training: the weights are random, and nothing is measured yet.";
      const { epochs, steps, curves } = this.data;
      const parts = CHARTS.filter(chart => curves[chart.curve]).map(({ curve, capacity, name }) => {
        const limit = curves[capacity] ? ` (capacity ${curves[capacity][epoch - 1].toFixed(2)})` : "";
        return `${name} ${curves[curve][epoch - 1].toFixed(2)} nats${limit}`;
      });
      return `Epoch ${epoch} of ${epochs.at(-1)}, step ${grouped(steps[this.frame])}: ${parts.join(", ")}.`;
    }

    /* The sheet that a frame stands on, and its number there. */
    find(frame) {
      let place = frame;
      for (const sheet of this.sheets || []) {
        if (place < sheet.frames) return { image: sheet.image, place };
        place -= sheet.frames;
      }
      return { image: null, place };
    }

    ready(frame) {
      const { image } = this.find(frame);
      return Boolean(image && image.complete && image.naturalWidth);
    }

    draw() {
      if (this.failed) return;
      const context = this.screen.getContext("2d");
      context.clearRect(0, 0, this.screen.width, this.screen.height);
      if (!this.ready(this.frame)) {
        this.screen.hidden = this.frame === this.last; // the page's own picture is right for the last epoch only
        this.poster.hidden = !this.screen.hidden;
        return;
      }
      const { side, gap, columns, across, rows } = this.data;
      const { image, place } = this.find(this.frame);
      const left = (place % across) * columns * side;
      const top = Math.floor(place / across) * rows.length * side;
      rows.forEach((row, y) => {
        for (let x = 0; x < row.tiles; x++) {
          context.drawImage(image, left + x * side, top + y * side, side, side, x * (side + gap), y * (side + gap), side, side);
        }
      });
      this.screen.hidden = false;
      this.poster.hidden = true;
    }
  }

  function begin() {
    for (const place of document.querySelectorAll(".film")) {
      try {
        new Player(place);
      } catch (error) {
        const note = place.querySelector(".film-note");
        note.textContent = "The data of this film can't be read: build the book again.";
        note.hidden = false;
      }
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
