// The order of the pictures that were clicked, until it is sent.
let order = [];

function draw() {
  const board = element.querySelector(".da-rank");
  if (!board) return;
  const best = Number(board.dataset.best);
  for (const pick of board.querySelectorAll(".da-pick")) {
    const place = order.indexOf(pick.dataset.id);
    pick.classList.toggle("chosen", place >= 0);
    pick.setAttribute("aria-pressed", place >= 0);
    pick.querySelector(".da-badge").textContent = place < 0 ? "" : `${place + 1}.`;
  }
  board.querySelector(".da-go").disabled = order.length !== best;
}

function choose(id, best) {
  if (order.includes(id)) order = order.filter((other) => other !== id);
  else if (best === 1) order = [id];
  else if (order.length < best) order.push(id);
  draw();
}

element.addEventListener("click", (event) => {
  const board = element.querySelector(".da-rank");
  const pick = event.target.closest(".da-pick");
  if (!board) return;
  if (pick) choose(pick.dataset.id, Number(board.dataset.best));
  else if (event.target.closest(".da-clear")) { order = []; draw(); }
  else if (event.target.closest(".da-go")) {
    event.target.closest(".da-go").disabled = true;
    event.target.closest(".da-go").textContent = "Drawing …";
    trigger("submit", { showing: Number(board.dataset.showing), order: [...order] });
  }
});

watch("value", () => { order = []; draw(); });
