"use strict";

// Pages from the disk may not fetch files: figures stand in the page, the values of a picture come as a script.
(() => {
  const images = JSON.parse(document.getElementById("images").textContent);
  const classes = JSON.parse(document.getElementById("classes").textContent);
  const by = (id) => document.getElementById(id);
  const LAYERS = {
    prediction: { file: "prediction.png", title: "Prediction", ids: true },
    confidence: { file: "confidence.jpg", title: "Confidence", scale: ["0", "1"] },
    disagreement: { file: "disagreement.jpg", title: "Disagreement", scale: ["0", "0.69 nats or more"] },
    errors: { file: "errors.png", title: "Errors", ids: true, legend: [["#d55e00", "wrong"], ["#000", "no label"]] },
    labels: { file: "labels.png", title: "Labels", ids: true },
    foreign: {
      file: "foreign.png", title: "Out of distribution", ids: true,
      legend: [["#0072b2", "out of distribution"], ["#000", "no label"]],
    },
  };
  // Maps of functions of confidence are called uncertainty-<function>.
  const lookOf = (name) => LAYERS[name]
    || { file: `${name}.jpg`, title: `Uncertainty: ${name.replace("uncertainty-", "")}`, scale: ["sure", "unsure"] };
  const UNKNOWN = 255;
  const values = new Map();
  let found = [];
  let current = null;
  let layer = "prediction";

  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  // Labelled images stand first, then those that members contradict one another about.
  const worst = (image) => (image.wrong !== null ? 10 + image.wrong
    : image.information !== null ? image.information : 1 - image.confidence - 10);
  const ORDERS = {
    worst: (a, b) => worst(b) - worst(a),
    information: (a, b) => (b.information ?? -1) - (a.information ?? -1),
    confidence: (a, b) => a.confidence - b.confidence,
    name: () => 0,
  };

  function filter() {
    const dataset = by("dataset").value;
    const wanted = by("class").value;
    const text = by("search").value.trim().toLowerCase();
    found = images.filter((image) => (!dataset || image.dataset === dataset)
      && (wanted === "" || image.classes.includes(Number(wanted)))
      && `${image.dataset}/${image.name}`.toLowerCase().includes(text));
    found.sort((a, b) => ORDERS[by("order").value](a, b)
      || a.dataset.localeCompare(b.dataset) || a.name.localeCompare(b.name));
    by("count").textContent = `${found.length} of ${images.length} images`;
    const thumbs = found.map((image) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.key = image.key;
      const picture = document.createElement("img");
      picture.loading = "lazy";
      picture.alt = "";
      picture.src = `pictures/${image.key}/thumb.jpg`;
      const words = document.createElement("span");
      words.textContent = `${image.name.split("/").pop()} · ${brief(image)}`;
      button.title = `${image.dataset}: ${image.name}`;
      button.append(picture, words);
      button.addEventListener("click", () => { show(image); by("viewer").scrollIntoView({ block: "nearest" }); });
      return button;
    });
    by("thumbs").replaceChildren(...thumbs);
    by("viewer").hidden = !found.length;
    if (found.length) show(found.includes(current) ? current : found[0]);
  }

  function brief(image) {
    if (image.wrong !== null) return image.ood ? `FPR ${image.wrong.toFixed(2)}` : `${percent(image.wrong)} wrong`;
    if (image.information !== null) return `${image.information.toFixed(3)} nats`;
    return `confidence ${image.confidence.toFixed(2)}`;
  }

  function show(image) {
    current = image;
    by("title").textContent = `${image.dataset}: ${image.name.split("/").pop()}`;
    const photograph = by("photograph");
    photograph.src = `pictures/${image.key}/photograph.jpg`;
    by("stage").style.aspectRatio = `${image.size[0]} / ${image.size[1]}`;
    if (!image.layers.includes(layer)) layer = "prediction";
    by("layers").replaceChildren(...image.layers.map((name) => {
      const label = document.createElement("label");
      const button = document.createElement("input");
      button.type = "radio";
      button.name = "layer";
      button.value = name;
      button.checked = name === layer;
      button.addEventListener("change", () => { layer = name; cover(); });
      label.append(button, ` ${lookOf(name).title}`);
      return label;
    }));
    const facts = [image.name, `${image.size[0]} × ${image.size[1]}`];
    if (image.wrong !== null) {
      facts.push(image.ood ? `false positives at 95 % true ones: ${percent(image.wrong)}`
        : `${percent(image.wrong)} of the labelled pixels are wrong`);
    }
    facts.push(`mean confidence ${image.confidence.toFixed(3)}`);
    if (image.information !== null) {
      facts.push(`two members differ on ${percent(image.disagreement)} of the pixels`);
      facts.push(`mutual information ${image.information.toFixed(3)} nats`);
    }
    by("facts").textContent = facts.join("; ");
    for (const item of by("legend").children) {
      item.classList.toggle("here", image.classes.includes(Number(item.dataset.class)));
    }
    by("values").textContent = "Point at the picture, or touch it, to read what stands there.";
    for (const button of by("thumbs").children) {
      if (button.dataset.key === image.key) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    load(image.key);
    cover();
  }

  function cover() {
    const look = lookOf(layer);
    const picture = by("layer");
    picture.src = `pictures/${current.key}/${look.file}`;
    picture.alt = look.title;
    picture.classList.toggle("ids", Boolean(look.ids));
    by("over").textContent = look.title.toLowerCase();
    const scale = by("scale");
    scale.hidden = !look.scale && !look.legend;
    if (look.scale) {
      const [low, high] = [document.createElement("span"), document.createElement("span")];
      [low.textContent, high.textContent] = look.scale;
      scale.replaceChildren(low, document.createElement("i"), high);
    } else if (look.legend) {
      scale.replaceChildren(...look.legend.map(([colour, words]) => {
        const item = document.createElement("span");
        const swatch = document.createElement("b");
        swatch.className = "swatch";
        swatch.style.background = colour;
        item.append(swatch, words);
        return item;
      }));
    }
    slide();
  }

  function slide() {
    const share = Number(by("slider").value);
    by("layer").style.clipPath = `inset(0 0 0 ${share}%)`;
    by("layer").style.opacity = Number(by("opacity").value) / 100;
    by("edge").style.left = `${share}%`;
  }

  function step(by_) {
    if (!found.length) return;
    const place = found.indexOf(current);
    show(found[(place + by_ + found.length) % found.length]);
    const thumb = by("thumbs").querySelector("[aria-current]");
    if (thumb) thumb.scrollIntoView({ block: "nearest" });
    by("viewer").scrollIntoView({ block: "nearest" });
  }

  // ---------------------------------------------------------------- values

  window.hmsaValues = (key, grids) => {
    const decoded = { width: grids.width, height: grids.height };
    for (const name of ["prediction", "confidence", "disagreement", "truth"]) {
      if (grids[name]) decoded[name] = Uint8Array.from(atob(grids[name]), (letter) => letter.charCodeAt(0));
    }
    values.set(key, decoded);
  };

  function load(key) {
    if (values.has(key)) return;
    values.set(key, null);
    const script = document.createElement("script");
    script.src = `pictures/${key}/values.js`;
    document.head.append(script);
    script.addEventListener("load", () => script.remove());
  }

  function read(event) {
    const grid = values.get(current.key);
    const place = by("stage").getBoundingClientRect();
    const [x, y] = [(event.clientX - place.left) / place.width, (event.clientY - place.top) / place.height];
    if (!grid || x < 0 || x >= 1 || y < 0 || y >= 1) return;
    const at = Math.floor(y * grid.height) * grid.width + Math.floor(x * grid.width);
    const said = [classes[grid.prediction[at]], `confidence ${(grid.confidence[at] / 255).toFixed(2)}`];
    if (grid.disagreement) said.push(`disagreement ${(grid.disagreement[at] / 100).toFixed(2)} nats`);
    if (grid.truth) {
      const truth = grid.truth[at];
      if (truth === UNKNOWN) said.push("no label");
      else if (current.ood) said.push(truth ? "out of distribution" : "of the known world");
      else said.push(truth === grid.prediction[at] ? "right" : `wrong: labelled ${classes[truth]}`);
    }
    by("values").textContent = said.join(" · ");
  }

  for (const id of ["dataset", "class", "order"]) by(id).addEventListener("change", filter);
  by("search").addEventListener("input", filter);
  by("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["slider", "opacity"]) by(id).addEventListener("input", slide);
  by("previous").addEventListener("click", () => step(-1));
  by("next").addEventListener("click", () => step(1));
  by("stage").addEventListener("pointermove", read);
  by("stage").addEventListener("pointerdown", read);
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      step(event.key === "ArrowLeft" ? -1 : 1);
    }
  });
  for (const link of document.querySelectorAll("a[data-show]")) {
    link.addEventListener("click", (event) => {
      const image = images.find((one) => one.key === link.dataset.show);
      if (!image || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      for (const id of ["dataset", "class", "search"]) by(id).value = "";
      layer = link.dataset.layer ?? layer;
      filter();
      show(image);
      by("viewer").scrollIntoView({ block: "start" });
    });
  }
  filter();
})();
