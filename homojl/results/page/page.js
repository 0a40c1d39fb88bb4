// Nothing here is needed to read the page: tables can be sorted, and what is folded is printed unfolded.
"use strict";
function order(cell) {
  const text = cell.dataset.order ?? cell.textContent.replace(/,/g, "");
  const value = parseFloat(text);
  return Number.isNaN(value) ? (cell.dataset.order ? -Infinity : text) : value;
}
function sort(table, column, heading) {
  const falling = heading.ariaSort !== "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.ariaSort = falling ? "descending" : "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [order(row.cells[column]), row]);
  rows.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0) * (falling ? -1 : 1));
  body.append(...rows.map(([, row]) => row));
}
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(table, column, heading));
    heading.append(button);
  });
}
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details:not([open])")];
  for (const details of unfolded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of unfolded) details.open = false;
});
