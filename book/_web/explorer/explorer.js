/* The explorer of a trained model: its decoder and encoder run here, in the page, in plain JavaScript.

   A container <div class="explorer" data-explorer="NAME" data-model="PATH/NAME.js"> holds a still picture. Once it comes
   near the screen, PATH/NAME.js is added as a script (a fetch would not work from the disk), and when the model is there
   the picture gives way to the controls. `python -m jointvae export` writes the file; jointvae/export.py says what is
   in it. Nothing is loaded from another host. */
(() => {
  "use strict";
  if (window.jointvaeExplorer) return; // two explorers on a page bring the script twice

  const FORMAT = 1;
  const REACH = 3; // the sliders of z go so many standard deviations of the prior to either side
  const STRIP_EVERY = 80; // milliseconds between two drawings of the strip of categories
  const EMPTY = "The drawing is empty: draw something first, or choose an image.";

  // --- The model: images and features are flat arrays with the channels last, pixels in [0, 1] ------------------------

  class DamagedModel extends Error {}

  class Model {
    /** A model from what its script registered; throws DamagedModel if that is not whole. */
    constructor(file) {
      const bytes = bytesOf(file.weights);
      if (file.format !== FORMAT) throw new DamagedModel(`format ${file.format} instead of ${FORMAT}`);
      if (crc32(bytes) !== file.crc32) throw new DamagedModel("the checksum of the weights is wrong");
      Object.assign(this, { file, title: file.title, z: file.z, c: file.c, side: file.image.size });
      this.channels = file.image.channels;
      this.latent = this.z.length + sum(this.c.map((unit) => unit.commonest.length));
      this.layers = unpack(file.layers, bytes);
      this.tests = testImages(file.tests, this.side);
    }

    /** The mean image for a latent vector (z, then c). */
    decode(latent) {
      const logits = this.run("decoder", latent, 4);
      return logits.map((logit) => 1 / (1 + Math.exp(-logit)));
    }

    /** Means and log variances of z and the probabilities of each discrete unit, for an image. */
    encode(image) {
      const head = this.run("encoder", image, this.side);
      const units = this.z.length;
      let start = 2 * units;
      const probs = this.c.map((unit) => softmax(head.slice(start, (start += unit.commonest.length))));
      return { mu: head.slice(0, units), logvar: head.slice(units, 2 * units), probs };
    }

    /** The layers of one part, with a ReLU between any two; `side` is that of the first image or features. */
    run(part, values, side) {
      const layers = this.layers.filter((layer) => layer.part === part);
      layers.forEach((layer, i) => {
        values = KINDS[layer.kind](layer, values, side);
        if (layer.kind === "down") side /= 2;
        if (layer.kind === "up") side *= 2;
        if (i < layers.length - 1) values.forEach((value, j) => value < 0 && (values[j] = 0));
      });
      return values;
    }
  }

  /* Each kind adds, for every input that is not zero, its row of weights to some outputs. After a ReLU many inputs are
     zero, so this is quick. */
  const KINDS = {
    dense({ weight, bias, inputs, outputs }, x) {
      const out = bias.slice();
      for (let i = 0; i < inputs; i++) if (x[i] !== 0) addRow(out, 0, x[i], weight, i * outputs, outputs);
      return out;
    },

    /** A convolution of 4 x 4, stride 2, padding 1: it halves the side. */
    down({ weight, bias, inputs, outputs }, x, side) {
      const half = side / 2;
      const out = new Float32Array(half * half * outputs);
      for (let place = 0; place < half * half; place++) {
        out.set(bias, place * outputs);
        for (let tap = 0; tap < 16; tap++) {
          const row = 2 * Math.floor(place / half) + (tap >> 2) - 1;
          const column = 2 * (place % half) + (tap & 3) - 1;
          if (row < 0 || column < 0 || row >= side || column >= side) continue;
          const from = (row * side + column) * inputs;
          for (let i = 0; i < inputs; i++) {
            if (x[from + i] !== 0) addRow(out, place * outputs, x[from + i], weight, (tap * inputs + i) * outputs, outputs);
          }
        }
      }
      return out;
    },

    /** Its transpose: it doubles the side. */
    up({ weight, bias, inputs, outputs }, x, side) {
      const twice = 2 * side;
      const out = new Float32Array(twice * twice * outputs);
      for (let place = 0; place < twice * twice; place++) out.set(bias, place * outputs);
      for (let place = 0; place < side * side; place++) {
        for (let tap = 0; tap < 16; tap++) {
          const row = 2 * Math.floor(place / side) + (tap >> 2) - 1;
          const column = 2 * (place % side) + (tap & 3) - 1;
          if (row < 0 || column < 0 || row >= twice || column >= twice) continue;
          const to = (row * twice + column) * outputs;
          for (let i = 0; i < inputs; i++) {
            const value = x[place * inputs + i];
            if (value !== 0) addRow(out, to, value, weight, (tap * inputs + i) * outputs, outputs);
          }
        }
      }
      return out;
    },
  };

  function addRow(out, to, factor, weight, from, length) {
    for (let o = 0; o < length; o++) out[to + o] += factor * weight[from + o];
  }

  /** Every layer with its weights as floats: as they are, or step counts times the scale of their output channel. */
  function unpack(layers, bytes) {
    let start = 0;
    const take = (kind, n) => {
      if (start + n * kind.BYTES_PER_ELEMENT > bytes.length) throw new DamagedModel("weights are missing");
      const taken = new kind(bytes.buffer, start, n);
      start += 4 * Math.ceil((n * kind.BYTES_PER_ELEMENT) / 4);
      return taken;
    };
    return layers.map(({ part, kind, shape, exact }) => {
      const [inputs, outputs] = shape.slice(-2);
      const size = shape.reduce((a, b) => a * b);
      const bias = take(Float32Array, outputs);
      const scale = exact ? null : take(Float32Array, outputs);
      const steps = take(exact ? Float32Array : Int16Array, size);
      return { part, kind, inputs, outputs, bias, weight: exact ? steps : scaled(steps, scale) };
    });
  }

  function scaled(steps, scale) {
    const weight = new Float32Array(steps.length);
    for (let i = 0; i < steps.length; i++) weight[i] = steps[i] * scale[i % scale.length];
    return weight;
  }

  function testImages(tests, side) {
    if (!tests) return [];
    const bytes = bytesOf(tests.pixels);
    const size = side * side;
    return tests.labels.map((label, i) => ({
      label,
      pixels: Float32Array.from(bytes.subarray(i * size, (i + 1) * size), (byte) => byte / 255),
    }));
  }

  const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";

  /** Bytes from base85: five characters are the digits of four bytes, the most significant first (RFC 1924's alphabet). */
  function bytesOf(text) {
    if (text.length % 5) throw new DamagedModel("a block of base85 is cut");
    const digit = new Uint8Array(128);
    for (let i = 0; i < 85; i++) digit[ALPHABET.charCodeAt(i)] = i;
    const view = new DataView(new ArrayBuffer((text.length / 5) * 4));
    for (let block = 0; 5 * block < text.length; block++) {
      let value = 0;
      for (let i = 0; i < 5; i++) value = value * 85 + (digit[text.charCodeAt(5 * block + i)] ?? 0);
      view.setUint32(4 * block, value);
    }
    return new Uint8Array(view.buffer);
  }

  /** CRC-32 as in zlib. */
  function crc32(bytes) {
    const table = Uint32Array.from({ length: 256 }, (_, n) => {
      for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
      return n;
    });
    let crc = 0xffffffff;
    for (const byte of bytes) crc = table[(crc ^ byte) & 255] ^ (crc >>> 8);
    return (crc ^ 0xffffffff) >>> 0;
  }

  function softmax(logits) {
    const top = Math.max(...logits);
    const powers = Array.from(logits, (logit) => Math.exp(logit - top));
    const total = sum(powers);
    return powers.map((power) => power / total);
  }

  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
  const largest = (numbers) => numbers.indexOf(Math.max(...numbers));
  const oneHot = (k, n) => Array.from({ length: n }, (_, j) => (j === k ? 1 : 0));

  /** The relaxed c: softmax(logits / tau); at tau = 0 its limit, all weight on the largest. */
  function relax(logits, tau) {
    return tau > 0 ? softmax(logits.map((logit) => logit / tau)) : oneHot(largest(logits), logits.length);
  }

  /** A draw from N(0, 1), by the method of Box and Muller. */
  function normal() {
    return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  }

  // --- A drawing: grey values on the pixels of the model --------------------------------------------------------------

  class Drawing {
    constructor(side) {
      this.side = side;
      this.clear();
    }

    clear() {
      this.pixels = new Float32Array(this.side * this.side);
    }

    get empty() {
      return !this.pixels.some((value) => value > 0.05);
    }

    /** A stroke of a soft brush from one point to another, in pixels. */
    stroke([x0, y0], [x1, y1]) {
      const core = 0.028 * this.side;
      const soft = 0.04 * this.side;
      const length = (x1 - x0) ** 2 + (y1 - y0) ** 2;
      this.pixels.forEach((before, place) => {
        const x = (place % this.side) + 0.5;
        const y = Math.floor(place / this.side) + 0.5;
        const along = length ? ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length : 0;
        const t = Math.min(1, Math.max(0, along));
        const distance = Math.hypot(x - x0 - t * (x1 - x0), y - y0 - t * (y1 - y0));
        this.pixels[place] = Math.max(before, Math.min(1, Math.max(0, (core + soft - distance) / soft)));
      });
    }

    /** The drawing as MNIST was made: the longer side fills 20 of 28 pixels, the centre of mass is in the middle. */
    centred() {
      const { side, pixels } = this;
      let [left, right, top, bottom, mass, x, y] = [side, 0, side, 0, 0, 0, 0];
      pixels.forEach((value, place) => {
        if (value <= 0.05) return;
        const [column, row] = [place % side, Math.floor(place / side)];
        [left, right] = [Math.min(left, column), Math.max(right, column + 1)];
        [top, bottom] = [Math.min(top, row), Math.max(bottom, row + 1)];
        mass += value;
        x += value * (column + 0.5);
        y += value * (row + 0.5);
      });
      const step = Math.max(right - left, bottom - top) / ((20 / 28) * side);
      return pixels.map((_, place) => {
        const column = x / mass + ((place % side) + 0.5 - side / 2) * step;
        const row = y / mass + (Math.floor(place / side) + 0.5 - side / 2) * step;
        return between(pixels, side, column - 0.5, row - 0.5);
      });
    }
  }

  /** The value at a point between pixels, bilinearly; outside it is 0. */
  function between(pixels, side, x, y) {
    const [column, row] = [Math.floor(x), Math.floor(y)];
    const at = (i, j) => (i < 0 || j < 0 || i >= side || j >= side ? 0 : pixels[j * side + i]);
    const [fx, fy] = [x - column, y - row];
    const upper = (1 - fx) * at(column, row) + fx * at(column + 1, row);
    const lower = (1 - fx) * at(column, row + 1) + fx * at(column + 1, row + 1);
    return (1 - fy) * upper + fy * lower;
  }

  // --- Pieces of a page ------------------------------------------------------------------------------------------------

  /** An element with attributes, listeners (`onclick`, …) and children. */
  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child != null));
    return node;
  }

  const canvas = (side, attributes) => make("canvas", { width: side, height: side, ...attributes });

  function paint(target, pixels, channels) {
    const context = target.getContext("2d");
    const image = context.createImageData(target.width, target.height);
    for (let i = 0; i < target.width * target.height; i++) {
      for (let k = 0; k < 3; k++) image.data[4 * i + k] = 255 * pixels[i * channels + (channels === 3 ? k : 0)] + 0.5;
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  let count = 0; // ids and groups of radio buttons must differ between explorers

  // --- The explorer ------------------------------------------------------------------------------------------------------

  class Explorer {
    constructor(model) {
      this.model = model;
      this.id = `explorer-${++count}`;
      this.z = new Float32Array(model.z.length);
      this.logits = model.c.map((unit) => oneHot(unit.order[0], unit.commonest.length));
      this.tau = 0;
      this.stored = {};
      this.drawing = new Drawing(model.side);
      this.node = make(
        "div",
        { class: "explorer-body" },
        make("div", { class: "explorer-column" }, this.stage()),
        make("div", { class: "explorer-controls" }, ...model.c.map((_, i) => this.switch(i)), this.softness(), this.dials()),
        this.encoder(),
      );
      this.show();
    }

    /** The relaxed c of every discrete unit. */
    get c() {
      return this.logits.map((logits) => relax(logits, this.tau));
    }

    latent(c = this.c) {
      return Float32Array.from([...this.z, ...c.flat()]);
    }

    // The picture, and what acts on the whole code.

    stage() {
      const { side, title } = this.model;
      this.picture = canvas(side, { class: "explorer-picture", role: "img" });
      this.status = make("p", { class: "explorer-status", role: "status" });
      const button = (text, act) => make("button", { type: "button", onclick: act }, text);
      return make(
        "div",
        { class: "explorer-stage" },
        make("p", { class: "explorer-title" }, `The decoder, trained on ${title}`),
        this.picture,
        make(
          "div",
          { class: "explorer-acts" },
          button("Random sample", () => this.sample()),
          button("Reset", () => this.reset()),
          this.path(),
        ),
        this.status,
      );
    }

    path() {
      const { side } = this.model;
      this.ends = { A: canvas(side, { "aria-hidden": "true" }), B: canvas(side, { "aria-hidden": "true" }) };
      this.walk = make("input", {
        type: "range", min: 0, max: 1, step: 0.01, value: 0, disabled: true,
        "aria-label": "From A to B", oninput: () => this.interpolate(),
      });
      const store = (end) => make("button", { type: "button", onclick: () => this.store(end) }, `Store ${end}`);
      return make(
        "fieldset",
        { class: "explorer-path" },
        make("legend", {}, "From A to B"),
        make("div", { class: "explorer-ends" }, this.ends.A, store("A"), store("B"), this.ends.B),
        this.walk,
      );
    }

    // The switch: a strip of categories, each shown with the present z.

    switch(i) {
      const unit = this.model.c[i];
      const name = this.model.c.length > 1 ? `c${i + 1}` : "c";
      const chips = unit.order.map((k) => this.chip(i, k, name));
      const kl = unit.kl == null ? "" : `, ${unit.kl.toFixed(2)} nats`;
      return make(
        "fieldset",
        { class: "explorer-switch" },
        make("legend", {}, `Switch ${name}`, make("small", {}, `${unit.commonest.length} categories${kl}`)),
        make("div", { class: "explorer-chips", style: `--columns: ${Math.min(5, chips.length)}` }, ...chips),
      );
    }

    chip(i, k, name) {
      const { commonest, matched } = this.model.c[i];
      const label = this.category(i, k);
      const match = matched[k] == null || matched[k] === commonest[k] ? "" : `; in the one-to-one match it is ${matched[k]}`;
      const radio = make("input", {
        type: "radio", name: `${this.id}-c${i}`, value: k, "aria-label": label,
        onchange: () => this.choose(i, k),
      });
      const thumb = canvas(this.model.side, { "aria-hidden": "true" });
      const share = make("span", { class: "explorer-share", "aria-hidden": "true" });
      const words = this.words(i, k, name);
      ((this.chips ??= [])[i] ??= [])[k] = { radio, thumb, share };
      return make("label", { class: "explorer-chip", title: label + match }, radio, thumb, share, ...words);
    }

    /** A category in words. */
    category(i, k) {
      const { commonest } = this.model.c[i];
      const known = commonest.some((label) => label != null);
      const what = commonest[k] != null ? `mostly ${commonest[k]}` : "no test image";
      return `category ${k + 1}` + (known ? ` (${what})` : "");
    }

    /** A category as two small words: what it mostly holds, if that is known, and its number. */
    words(i, k, name) {
      const { commonest } = this.model.c[i];
      const own = `${name} = ${k + 1}`;
      if (commonest.every((label) => label == null)) return [make("b", {}, own)];
      return [commonest[k] == null ? make("i", {}, "no image") : make("b", {}, commonest[k]), make("small", {}, own)];
    }

    softness() {
      if (!this.model.c.length) return null;
      const id = `${this.id}-tau`;
      this.tauSlider = make("input", {
        type: "range", id, min: 0, max: 2, step: 0.02, value: 0, "aria-describedby": `${id}-help`,
        oninput: () => {
          this.tau = Number(this.tauSlider.value);
          this.show();
        },
      });
      this.tauText = make("output", { for: id });
      return make(
        "div",
        { class: "explorer-softness" },
        make("div", { class: "explorer-dial" }, make("label", { for: id }, make("b", {}, "Softness τ")), this.tauSlider, this.tauText),
        make(
          "p",
          { id: `${id}-help` },
          "c = softmax(ℓ/τ). At 0 all weight lies on one category, a corner of the simplex; a larger τ spreads it. " +
            "ℓ is 1 for the chosen category and 0 for the others, or log q(c|x) after encoding an image.",
        ),
      );
    }

    // The dials.

    dials() {
      const units = this.model.z.map((unit, j) => ({ ...unit, j }));
      if (!units.length) return null;
      if (units.every(({ kl }) => kl != null)) units.sort((a, b) => b.kl - a.kl);
      const idle = units.filter(({ kl }) => kl != null && kl < this.model.file.used);
      const used = units.filter((unit) => !idle.includes(unit));
      return make(
        "fieldset",
        { class: "explorer-dials" },
        make("legend", {}, "Dials z", make("small", {}, "in standard deviations of the prior")),
        ...used.map((unit) => this.dial(unit)),
        idle.length
          ? make(
              "details",
              {},
              make("summary", {}, `${idle.length} unused: below ${this.model.file.used} nats, so they change nothing`),
              ...idle.map((unit) => this.dial(unit)),
            )
          : null,
      );
    }

    dial({ name, low, high, kl, j }) {
      const id = `${this.id}-z${j}`;
      const slider = make("input", {
        type: "range", id, min: -REACH, max: REACH, step: 0.05, value: 0,
        oninput: () => {
          this.z[j] = Number(slider.value);
          this.show();
        },
      });
      const output = make("output", { for: id });
      (this.sliders ??= [])[j] = { slider, output, name, low, high };
      const own = `z${j + 1}`;
      const facts = [name === own ? null : own, kl == null ? null : `${kl.toFixed(2)} nats`].filter(Boolean).join(", ");
      return make(
        "div",
        { class: "explorer-dial" },
        make("label", { for: id }, make("b", {}, name), make("small", {}, facts)),
        slider,
        output,
        low ? make("span", { class: "explorer-words", "aria-hidden": "true" }, make("span", {}, low), make("span", {}, high)) : null,
      );
    }

    // The encoder.

    encoder() {
      const { side } = this.model;
      this.seen = canvas(side, { role: "img", "aria-label": "No image yet" });
      this.rebuilt = canvas(side, { role: "img", "aria-label": "No reconstruction yet" });
      this.bars = make("div", { class: "explorer-bars" });
      this.answer = make(
        "div",
        { class: "explorer-answer", hidden: true },
        make(
          "div",
          { class: "explorer-pair" },
          make("figure", {}, this.seen, make("figcaption", {}, "image")),
          make("figure", {}, this.rebuilt, make("figcaption", {}, "rebuilt")),
        ),
        this.bars,
      );
      return make(
        "fieldset",
        { class: "explorer-encoder" },
        make("legend", {}, "The encoder", make("small", {}, "gives c and z for an image; the controls take them")),
        make("div", { class: "explorer-sources" }, this.pad(), this.gallery()),
        this.answer,
      );
    }

    gallery() {
      this.choices = this.model.tests.map(({ label, pixels }, n) => {
        const radio = make("input", {
          type: "radio", name: `${this.id}-test`, value: n, "aria-label": `Test image ${n + 1}: ${label}`,
          onchange: () => this.encode(pixels, `test image ${n + 1} (${label})`),
        });
        const thumb = canvas(this.model.side, { "aria-hidden": "true" });
        paint(thumb, pixels, 1);
        return { radio, node: make("label", { title: label }, radio, thumb) };
      });
      const again = make("button", { type: "button", onclick: () => this.encodePicture() }, "Encode the picture on show");
      if (!this.choices.length) return make("div", { class: "explorer-gallery" }, again);
      return make(
        "div",
        { class: "explorer-gallery" },
        make(
          "fieldset",
          {},
          make("legend", {}, "or choose a test image"),
          make("div", { class: "explorer-thumbs" }, ...this.choices.map(({ node }) => node)),
        ),
        again,
      );
    }

    pad() {
      const { side } = this.model;
      this.sketch = canvas(side, {
        class: "explorer-pad", role: "img",
        "aria-label": "A place to draw with the mouse, a pen or a finger. With the keyboard, choose an image instead.",
      });
      this.hint = make("span", { "aria-hidden": "true" }, "draw here");
      let last = null;
      const place = ({ clientX, clientY }) => {
        const box = this.sketch.getBoundingClientRect();
        return [((clientX - box.left) / box.width) * side, ((clientY - box.top) / box.height) * side];
      };
      const draw = (event) => {
        const next = place(event);
        this.drawing.stroke(last ?? next, next);
        last = next;
        this.hint.hidden = true;
        paint(this.sketch, this.drawing.pixels, 1);
      };
      this.sketch.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        this.sketch.setPointerCapture(event.pointerId);
        draw(event);
      });
      this.sketch.addEventListener("pointermove", (event) => last && draw(event));
      this.sketch.addEventListener("pointerup", () => {
        if (last) this.encodeDrawing();
        last = null;
      });
      this.sketch.addEventListener("pointercancel", () => (last = null));
      paint(this.sketch, this.drawing.pixels, 1);
      const clear = () => {
        this.drawing.clear();
        this.hint.hidden = false;
        paint(this.sketch, this.drawing.pixels, 1);
        this.say("The drawing is cleared.");
      };
      return make(
        "fieldset",
        { class: "explorer-drawing" },
        make("legend", {}, "Draw something"),
        make("div", { class: "explorer-paper" }, this.sketch, this.hint),
        make(
          "div",
          { class: "explorer-acts" },
          make("button", { type: "button", onclick: () => this.encodeDrawing() }, "Encode the drawing"),
          make("button", { type: "button", onclick: clear }, "Clear"),
        ),
      );
    }

    // What the reader can do.

    choose(i, k) {
      this.logits[i] = oneHot(k, this.logits[i].length);
      this.show();
    }

    sample() {
      this.z = this.z.map(normal);
      this.logits = this.logits.map(({ length }) => oneHot(Math.floor(Math.random() * length), length));
      this.show();
      this.say(`A draw from the prior${this.chosen()}.`);
    }

    reset() {
      this.z.fill(0);
      this.logits = this.model.c.map((unit) => oneHot(unit.order[0], unit.commonest.length));
      this.tau = 0;
      this.show();
      this.say(`All dials are at 0${this.chosen()}.`);
    }

    chosen() {
      return this.logits.length ? `: ${this.logits.map((logits, i) => this.category(i, largest(logits))).join("; ")}` : "";
    }

    store(end) {
      this.stored[end] = { z: this.z.slice(), c: this.c };
      this.ends[end].dataset.stored = "";
      paint(this.ends[end], this.model.decode(this.latent()), this.model.channels);
      const ready = Boolean(this.stored.A && this.stored.B);
      this.walk.disabled = !ready;
      if (ready) this.walk.value = end === "A" ? 0 : 1;
      this.say(ready ? "A and B are stored: the slider walks between them." : `${end} is stored: change something and store the other.`);
    }

    interpolate() {
      const t = Number(this.walk.value);
      const { A, B } = this.stored;
      this.walk.setAttribute("aria-valuetext", `${Math.round(100 * t)} % of the way`);
      this.z = A.z.map((value, j) => (1 - t) * value + t * B.z[j]);
      // The mixture itself: its logarithm at tau = 1 gives it back.
      this.logits = A.c.map((c, i) => c.map((value, k) => Math.log(Math.max((1 - t) * value + t * B.c[i][k], 1e-30))));
      this.tau = 1;
      this.show();
    }

    encodeDrawing() {
      if (this.drawing.empty) {
        this.say(EMPTY);
        return;
      }
      for (const { radio } of this.choices) radio.checked = false;
      const grey = this.model.file.digits ? this.drawing.centred() : this.drawing.pixels;
      const pixels = this.model.channels === 3 ? Float32Array.from({ length: 3 * grey.length }, (_, i) => grey[Math.floor(i / 3)]) : grey;
      this.encode(pixels, "your drawing");
    }

    encodePicture() {
      for (const { radio } of this.choices) radio.checked = false;
      this.encode(this.model.decode(this.latent()), "the picture on show");
    }

    encode(pixels, what) {
      const { mu, probs } = this.model.encode(pixels);
      this.z = mu;
      this.logits = probs.map((unit) => unit.map((p) => Math.log(Math.max(p, 1e-30))));
      this.tau = 0;
      paint(this.seen, pixels, this.model.channels);
      this.seen.setAttribute("aria-label", `The image: ${what}`);
      paint(this.rebuilt, this.model.decode(this.latent()), this.model.channels);
      this.rebuilt.setAttribute("aria-label", `The reconstruction of ${what}`);
      this.bars.replaceChildren(...probs.map((unit, i) => this.chart(unit, i)));
      this.answer.hidden = false;
      this.show();
      const best = probs.map((unit, i) => `${this.category(i, largest(unit))} with ${percent(Math.max(...unit))}`);
      this.say(`Encoded ${what}${best.length ? `: ${best.join("; ")}` : ""}.`);
    }

    /** q(c|x) of one discrete unit as labelled bars. */
    chart(probs, i) {
      const { order } = this.model.c[i];
      const name = this.model.c.length > 1 ? `c${i + 1}` : "c";
      const rows = order.map((k) =>
        make(
          "li",
          { class: k === largest(probs) ? "explorer-best" : null },
          make("span", {}, ...this.words(i, k, name)),
          make("span", { class: "explorer-bar", "aria-hidden": "true" }, make("span", { style: `width: ${100 * probs[k]}%` })),
          make("span", {}, percent(probs[k])),
        ),
      );
      const what = `q(${name}|x)`;
      return make("div", {}, make("p", {}, what), make("ul", { "aria-label": `${what}, in percent` }, ...rows));
    }

    // What is shown.

    say(sentence) {
      this.status.textContent = sentence;
    }

    /** Draw the next frame; many changes before it make one drawing. */
    show() {
      this.frame ??= requestAnimationFrame(() => {
        this.frame = null;
        this.draw();
        this.strip ??= setTimeout(() => {
          this.strip = null;
          this.drawStrip();
        }, STRIP_EVERY);
      });
    }

    draw() {
      const c = this.c;
      paint(this.picture, this.model.decode(this.latent(c)), this.model.channels);
      this.picture.setAttribute("aria-label", `The decoded image${this.chosen()}`);
      c.forEach((unit, i) => {
        const best = largest(unit);
        unit.forEach((share, k) => {
          const chip = this.chips[i][k];
          chip.share.style.setProperty("--share", share);
          chip.radio.checked = k === best;
        });
      });
      if (this.tauSlider) {
        this.tauSlider.value = this.tau;
        this.tauText.textContent = this.tau.toFixed(2);
        const shares = c.map((unit) => percent(Math.max(...unit))).join(", ");
        this.tauSlider.setAttribute("aria-valuetext", `${this.tau.toFixed(2)}, largest weight ${shares}`);
      }
      (this.sliders ?? []).forEach(({ slider, output, low, high }, j) => {
        slider.value = this.z[j];
        output.textContent = signed(this.z[j]);
        const word = Math.abs(this.z[j]) < 0.5 ? "" : this.z[j] < 0 ? low : high;
        slider.setAttribute("aria-valuetext", signed(this.z[j]) + (word ? `, ${word}` : ""));
      });
    }

    /** Every category of each discrete unit, with the present z and the other units as they are. */
    drawStrip() {
      const c = this.c;
      c.forEach((unit, i) => {
        unit.forEach((_, k) => {
          const codes = c.map((other, j) => (j === i ? oneHot(k, unit.length) : other));
          paint(this.chips[i][k].thumb, this.model.decode(this.latent(codes)), this.model.channels);
        });
      });
    }
  }

  const percent = (share) => `${(100 * share).toFixed(share > 0.0005 && share < 0.0995 ? 1 : 0)} %`;
  const signed = (value) => (value < -0.005 ? "−" : value > 0.005 ? "+" : "") + Math.abs(value).toFixed(2);

  // --- From the container to the explorer --------------------------------------------------------------------------------

  /** Load the model of a container and put the explorer there; on failure the still picture stays, with a sentence. */
  function load(root) {
    if (root.dataset.state) return;
    root.dataset.state = "loading";
    const notice = make("p", { class: "explorer-status", role: "status" }, "Loading the model…");
    root.append(notice);
    const fail = (why) => {
      root.dataset.state = "failed";
      notice.setAttribute("role", "alert");
      notice.textContent = `The model ${why}, so only this picture of its latents can be shown.`;
    };
    const start = () => {
      let explorer;
      try {
        explorer = new Explorer(new Model(window.jointvaeModels[root.dataset.explorer]));
      } catch (error) {
        fail("is damaged");
        console.warn(error);
        return;
      }
      root.replaceChildren(explorer.node);
      root.dataset.state = "ready";
      root.explorer = explorer;
    };
    if (window.jointvaeModels?.[root.dataset.explorer]) {
      start();
      return;
    }
    const script = make("script", { src: root.dataset.model, onload: start, onerror: () => fail("could not be loaded") });
    document.head.append(script);
  }

  function find() {
    const roots = document.querySelectorAll("[data-explorer]");
    if (!("IntersectionObserver" in window)) {
      roots.forEach(load);
      return;
    }
    const watcher = new IntersectionObserver(
      (entries) => {
        for (const { isIntersecting, target } of entries) {
          if (!isIntersecting) continue;
          watcher.unobserve(target);
          load(target);
        }
      },
      { rootMargin: "200px" },
    );
    roots.forEach((root) => watcher.observe(root));
  }

  window.jointvaeExplorer = { Model, Explorer, Drawing };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", find);
  else find();
})();
