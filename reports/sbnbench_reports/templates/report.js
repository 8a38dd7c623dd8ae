"use strict";
document.documentElement.classList.add("scripted");

function content(cell) {
  return cell.dataset.text ?? cell.textContent.trim();
}

function order(cell) {
  return Number(cell.dataset.order ?? (content(cell) === "" ? NaN : content(cell)));
}

// Numbers by size, texts by alphabet; what is empty stays at the end either way.
function compare(a, b, sign) {
  const [x, y] = [order(a), order(b)];
  if (!Number.isNaN(x) && !Number.isNaN(y)) return sign * (x - y);
  const [s, t] = [content(a), content(b)];
  if (s === "" || t === "") return (s === "") - (t === "");
  return sign * s.localeCompare(t, "en", { numeric: true });
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows];
      rows.sort((a, b) => compare(a.cells[column], b.cells[column], up ? 1 : -1));
      body.append(...rows);
    });
  });
}

const filters = document.querySelector(".filters");
if (filters) {
  const rows = [...document.getElementById("verdict-table").tBodies[0].rows];
  const choices = [...filters.querySelectorAll("select")];
  const apply = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = choices.some(
        (c) => c.value !== "" && content(row.cells[c.dataset.column]) !== c.value);
      shown += !row.hidden;
    }
    filters.querySelector("output").textContent =
      shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  };
  filters.addEventListener("change", apply);
  filters.addEventListener("submit", (event) => event.preventDefault());
  apply(); // a browser may restore choices on reload
}

const chosen = new Set();
const legend = [...document.querySelectorAll(".legend button")];
for (const button of legend) {
  button.addEventListener("click", () => {
    const series = button.dataset.series;
    if (!chosen.delete(series)) chosen.add(series);
    document.body.classList.toggle("dimmed", chosen.size > 0);
    for (const other of legend) {
      other.setAttribute("aria-pressed", chosen.has(other.dataset.series));
    }
    for (const mark of document.querySelectorAll(".plot .s")) {
      mark.classList.toggle("on", [...chosen].some((s) => mark.classList.contains(`s${s}`)));
    }
  });
}
