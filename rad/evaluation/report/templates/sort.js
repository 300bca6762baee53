// Clicking a column heading sorts each group of rows by it; empty cells stay last.
document.documentElement.classList.add("js");
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const sign = down ? -1 : 1;
    heads.forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
      const value = (row) => row.cells[column].dataset.value;
      rows.sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === "" || b === "") return (a === "") - (b === "");
        if (column === 0) return sign * a.localeCompare(b);
        return Number(a) === Number(b) ? 0 : sign * (Number(a) < Number(b) ? -1 : 1);
      });
      body.append(...rows);
    }
  }));
}
