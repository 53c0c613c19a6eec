function reportPage(root) {
  function value(row, at) {
    var cell = row.cells[at];
    if (cell === undefined) { return ""; }
    if (cell.dataset.v !== undefined) { return parseFloat(cell.dataset.v); }
    return cell.textContent;
  }
  function order(a, b) {
    var numbers = typeof a === "number" && typeof b === "number";
    if (numbers) { return a - b; }
    if (typeof a !== typeof b) { return typeof a === "number" ? -1 : 1; }
    return a.localeCompare(b, undefined, { numeric: true });
  }
  root.addEventListener("click", function (event) {
    var button = event.target.closest ? event.target.closest("th button") : null;
    if (!button) { return; }
    var head = button.parentElement, row = head.parentElement, body = row.closest("table").tBodies[0];
    var at = Array.prototype.indexOf.call(row.cells, head);
    var way = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    Array.prototype.forEach.call(row.cells, function (cell) { cell.setAttribute("aria-sort", "none"); });
    head.setAttribute("aria-sort", way);
    var sign = way === "ascending" ? 1 : -1;
    var rows = Array.prototype.slice.call(body.rows).map(function (one, place) { return [value(one, at), place, one]; });
    rows.sort(function (a, b) { return sign * order(a[0], b[0]) || a[1] - b[1]; });
    rows.forEach(function (one) { body.appendChild(one[2]); });
  });
  root.addEventListener("input", function (event) {
    if (!event.target.classList || !event.target.classList.contains("filter")) { return; }
    var wanted = event.target.value.toLowerCase();
    var rows = event.target.parentElement.querySelectorAll("tbody tr");
    Array.prototype.forEach.call(rows, function (row) {
      row.hidden = row.textContent.toLowerCase().indexOf(wanted) < 0;
    });
  });
}
