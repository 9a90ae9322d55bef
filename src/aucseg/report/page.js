"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Tables: click a heading to sort by it, again to turn the order; rows without a value stay last.
  for (const table of all("table.sortable")) {
    const headings = all("thead th", table), body = table.tBodies[0];
    headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
      const valueOf = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...body.rows], isText = rows.some((row) => isNaN(valueOf(row)));
      const before = heading.getAttribute("aria-sort");
      // The first click shows the largest number or the first letter.
      const order = before ? (before === "ascending" ? "descending" : "ascending") : isText ? "ascending" : "descending";
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        const x = valueOf(a), y = valueOf(b);
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (isText ? x.localeCompare(y) : x - y);
      });
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      body.append(...rows);
    }));
  }

  // Tips: the text of data-tip, or the classes under the pointer, beside the pointer.
  const tip = document.getElementById("tip");
  const showTip = (text, event) => {
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const box = tip.getBoundingClientRect();
    const x = event.clientX + 16 + box.width > innerWidth ? event.clientX - 16 - box.width : event.clientX + 16;
    const y = event.clientY + 18 + box.height > innerHeight ? event.clientY - 12 - box.height : event.clientY + 18;
    tip.style.transform = `translate(${Math.max(4, x)}px, ${Math.max(4, y)}px)`;
  };
  const onPointer = (event) => {
    const target = event.target instanceof Element ? event.target : null;
    const stage = target && target.closest(".compare .stage");
    const tipped = target && target.closest("[data-tip]");
    showTip(stage ? classesAt(stage, event) : tipped ? tipped.dataset.tip : "", event);
  };
  document.addEventListener("pointermove", onPointer);
  document.addEventListener("pointerdown", onPointer);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });
  document.addEventListener("pointerleave", () => { tip.hidden = true; });

  // The colour of a label picture tells the class.
  const classOf = new Map(data.palette.map(([r, g, b], id) => [(r << 16) | (g << 8) | b, data.classes[id]]));
  const pixels = new WeakMap();
  const pixelsOf = (image) => {
    if (!pixels.has(image)) {
      const canvas = document.createElement("canvas");
      canvas.width = image.naturalWidth;
      canvas.height = image.naturalHeight;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      pixels.set(image, context.getImageData(0, 0, canvas.width, canvas.height));
    }
    return pixels.get(image);
  };
  const classAt = (image, u, v) => {
    const { data: rgba, width, height } = pixelsOf(image);
    const at = 4 * (Math.min(height - 1, Math.floor(v * height)) * width + Math.min(width - 1, Math.floor(u * width)));
    return rgba[at + 3] ? classOf.get((rgba[at] << 16) | (rgba[at + 1] << 8) | rgba[at + 2]) : "ignored";
  };
  const classesAt = (stage, event) => {
    const box = stage.getBoundingClientRect();
    const u = (event.clientX - box.left) / box.width, v = (event.clientY - box.top) / box.height;
    if (u < 0 || v < 0 || u >= 1 || v >= 1) return "";
    const lines = all(".labels[data-run]", stage).map((i) => `${data.runs[i.dataset.run]}: ${classAt(i, u, v)}`);
    return [`truth: ${classAt(stage.querySelector(".truth"), u, v)}`, ...lines].join("\n");
  };

  // Sliders between two runs.
  const cards = all(".compare");
  const setTruth = (card, isOn) => {
    card.classList.toggle("truth-on", isOn);
    card.querySelector(".show-truth").setAttribute("aria-pressed", isOn);
  };
  for (const card of cards) {
    const divide = card.querySelector(".divide");
    const move = () => card.style.setProperty("--at", `${divide.value}%`);
    divide.addEventListener("input", move);
    move();
    const nameSides = () => {
      for (const side of ["left", "right"]) {
        const image = card.querySelector(`.labels.${side}`);
        card.querySelector(`.at-${side}`).textContent = data.runs[image.dataset.run];
      }
    };
    for (const side of ["left", "right"]) {
      const pick = card.querySelector(`.pick-${side}`);
      if (!pick) continue;
      pick.addEventListener("change", () => {
        all(".labels[data-run]", card).forEach((i) => i.classList.toggle(side, i.dataset.run === pick.value));
        nameSides();
      });
    }
    nameSides();
    const button = card.querySelector(".show-truth");
    button.addEventListener("click", () => setTruth(card, button.getAttribute("aria-pressed") !== "true"));
  }
  let isHeld = false;
  const onKey = (isOn) => (event) => {
    const isOurs = event.key && event.key.toLowerCase() === "t" && !event.ctrlKey && !event.metaKey && !event.altKey;
    if (isOurs && !event.repeat && !(event.target instanceof HTMLSelectElement)) {
      isHeld = isOn;
      cards.forEach((card) => setTruth(card, isOn));
    }
  };
  document.addEventListener("keydown", onKey(true));
  document.addEventListener("keyup", onKey(false));
  // A key released in another window is never seen here.
  addEventListener("blur", () => {
    if (isHeld) cards.forEach((card) => setTruth(card, false));
    isHeld = false;
  });

  const strength = document.getElementById("strength");
  if (strength) {
    const set = () => document.documentElement.style.setProperty("--strength", strength.value / 100);
    strength.addEventListener("input", set);
    set();
  }
})();
