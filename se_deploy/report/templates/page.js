"use strict";
(() => {
  const SCALE = { k: 1e3, M: 1e6, G: 1e9, kB: 1e3, MB: 1e6, GB: 1e9 };
  const text = (cell) => cell.textContent.replace(/\s+/g, " ").trim();

  // A number with its unit, "identical" above all decibels, else the words themselves.
  function rank(cell) {
    const words = text(cell).replace(/(\d) (?=\d{3}\b)/g, "$1");
    if (words === "identical") return Infinity;
    const found = /^([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(\S*)/i.exec(words);
    return found ? Number(found[1]) * (SCALE[found[2]] || 1) : words;
  }

  function before(a, b) {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  }

  function sort(table, column, heading) {
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => (down ? -1 : 1) * before(rank(a.cells[column]), rank(b.cells[column])));
    table.tBodies[0].append(...rows);
  }

  // A spreadsheet takes a cell that begins so for a formula.
  const harmless = (words) => (/^[=@\t]/.test(words) ? "'" + words : words);
  const quoted = (words) => '"' + harmless(words).replaceAll('"', '""') + '"';

  function download(table, name) {
    const lines = [...table.rows].map((row) => [...row.cells].map((cell) => quoted(text(cell))).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
    link.download = name.toLowerCase().replace(/[^a-z0-9]+/g, "-") + ".csv";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  // A box for words, and a choice of values for each column that says so; a row stays where all of them hold.
  function filter(region, table) {
    const rows = [...table.tBodies[0].rows];
    const box = document.createElement("input");
    box.type = "search";
    box.placeholder = "Search";
    box.setAttribute("aria-label", "Search " + region.getAttribute("aria-label"));
    const choices = [...table.tHead.rows[0].cells]
      .map((heading, column) => ({ heading, column }))
      .filter(({ heading }) => "choices" in heading.dataset)
      .map(({ heading, column }) => {
        const select = document.createElement("select");
        const name = text(heading);
        select.setAttribute("aria-label", name);
        select.add(new Option(name + ": all", ""));
        for (const value of [...new Set(rows.map((row) => text(row.cells[column])))].sort()) select.add(new Option(value));
        return { select, column };
      });
    const shown = document.createElement("span");
    shown.className = "soft";
    shown.setAttribute("role", "status");
    function apply() {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const whole = text(row).toLowerCase();
        row.hidden =
          !words.every((word) => whole.includes(word)) ||
          choices.some(({ select, column }) => select.value && text(row.cells[column]) !== select.value);
      }
      shown.textContent = rows.filter((row) => !row.hidden).length + " of " + rows.length;
    }
    const tools = document.createElement("p");
    tools.className = "tools";
    tools.append(box, ...choices.map(({ select }) => select), shown);
    tools.addEventListener("input", apply);
    apply();
    region.before(tools);
  }

  function button(label, title, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = label;
    made.title = title;
    made.addEventListener("click", act);
    return made;
  }

  for (const region of document.querySelectorAll(".scroll")) {
    const table = region.querySelector("table");
    if (!table || !table.tHead || table.querySelector("tbody [colspan]")) continue;
    const name = region.getAttribute("aria-label");
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const words = text(heading);
      heading.replaceChildren(button(words, "Sort by " + words, () => sort(table, column, heading)));
    });
    const csv = button("CSV", "Save this table as a CSV file", () => download(table, name));
    csv.className = "tool";
    region.after(csv);
    if (table.classList.contains("filtered")) filter(region, table);
  }

  for (const canvas of document.querySelectorAll(".canvas")) {
    const drawing = canvas.querySelector("svg");
    const full = drawing.viewBox.baseVal.width;
    const set = (width) => {
      drawing.setAttribute("width", width);
      drawing.removeAttribute("height");
    };
    const tools = document.createElement("p");
    tools.append(
      button("−", "Smaller", () => set(drawing.getBoundingClientRect().width / 1.4)),
      button("+", "Larger", () => set(drawing.getBoundingClientRect().width * 1.4)),
      button("whole width", "As wide as the page", () => set(canvas.clientWidth)),
      button("full size", "Names readable", () => set(full)),
    );
    tools.className = "tools";
    canvas.before(tools);
  }

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => opened.forEach((one) => (one.open = false)));
})();
