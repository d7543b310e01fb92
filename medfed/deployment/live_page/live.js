// Replaces what is live every few seconds; says so if it cannot, so that nothing old passes for new.
"use strict";
const EVERY_MS = 5000;
const live = document.getElementById("live");
const stale = document.getElementById("stale");
let refreshed = new Date();

async function refresh() {
  try {
    const answer = await fetch("live", { cache: "no-store", signal: AbortSignal.timeout(4 * EVERY_MS) });
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const open = new Set([...live.querySelectorAll("details[open]")].map((one) => one.id));
    for (const one of page.querySelectorAll("details[id]")) one.open = one.open || open.has(one.id);
    live.replaceChildren(...page.body.childNodes);
    document.title = live.querySelector("[data-title]")?.dataset.title ?? document.title;
    refreshed = new Date();
    stale.hidden = true;
  } catch {
    document.getElementById("refreshed").textContent = refreshed.toLocaleTimeString();
    stale.hidden = false;
  }
  setTimeout(refresh, EVERY_MS);
}

setTimeout(refresh, EVERY_MS);
