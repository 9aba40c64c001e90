"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const number = (text) => (text === "" || text === undefined || Number.isNaN(Number(text)) ? null : Number(text));
  const compare = (one, other) => (typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other), "en", { numeric: true }));

  // Tables: a button in each column's head sorts by it.
  for (const table of all("table.scores, table.sortable")) {
    all("thead th", table).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const falls = head.getAttribute("aria-sort") !== "descending" && (head.classList.contains("num") && column > 0 || head.getAttribute("aria-sort") === "ascending");
        all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falls ? "descending" : "ascending");
        const value = (row) => {
          const cell = row.children[column];
          return number(cell.dataset.value) ?? number(cell.textContent.trim()) ?? cell.textContent.trim();
        };
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort((one, other) => (falls ? -1 : 1) * compare(value(one), value(other))));
      });
    });
  }

  // Search, sort and filter of test points; the search is of the suspicious labels, too.
  const controls = document.getElementById("controls");
  if (controls) {
    const list = document.getElementById("point-list"), search = document.getElementById("search");
    const sort = document.getElementById("sort"), show = document.getElementById("show"), found = document.getElementById("found");
    const points = all(".point"), suspects = all(".suspect");
    const text = new Map([...points, ...suspects].map((each) => [each, each.textContent.toLowerCase()]));
    const fits = (each, filtered) =>
      search.value.toLowerCase().split(/\s+/).every((word) => text.get(each).includes(word)) &&
      (!filtered || show.value === "all" || each.dataset.right === (show.value === "right" ? "true" : "false"));
    const update = () => {
      for (const point of points) point.hidden = !fits(point, true);
      for (const suspect of suspects) suspect.hidden = !fits(suspect, false);
      const seen = (elements) => elements.filter((each) => !each.hidden).length;
      found.textContent = `${seen(points)} of ${points.length} test points` + (suspects.length ? `, ${seen(suspects)} of ${suspects.length} suspicious labels` : "");
    };
    const reorder = () => {
      const key = sort.value, falls = key === "largest" || key === "loss";
      const value = (point) => number(point.dataset[key]) ?? (falls ? -Infinity : point.dataset[key]);
      list.append(...[...points].sort((one, other) => (falls ? -1 : 1) * compare(value(one), value(other))));
    };
    controls.addEventListener("submit", (event) => event.preventDefault());
    search.addEventListener("input", update);
    show.addEventListener("change", update);
    sort.addEventListener("change", reorder);
    controls.hidden = false;
    update();
  }

  // On paper, everything is open.
  addEventListener("beforeprint", () => all("details").forEach((each) => { each.open = true; }));
})();
