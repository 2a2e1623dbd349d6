/* The only script of the dashboard. Every page works without it; with it, live figures are refreshed, and a new token can be copied.

A page with [data-live] names an address that answers {parts: {name: HTML}, said: a sentence}. Each part replaces the content of the element
#live-NAME; the HTML is the daemon's own, rendered and escaped there. Nothing is asked for while the page is hidden or updates are paused. */
"use strict";
(() => {
  const SAID_EVERY_MS = 30000; // those who listen are told of changes no more often than this
  const main = document.querySelector("[data-live]");

  function refreshed(name, html) {
    const element = document.getElementById(`live-${name}`);
    if (!element || element.dataset.html === html) return;
    const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
    if (element.contains(document.activeElement) && !focused) return; // do not take away what somebody is using
    const open = new Set([...element.querySelectorAll("details[open][data-keep]")].map((one) => one.dataset.keep));
    const scrolled = [...element.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    const parsed = new DOMParser().parseFromString(html, "text/html");
    element.replaceChildren(...parsed.body.childNodes);
    element.dataset.html = html;
    for (const one of element.querySelectorAll("details[data-keep]")) one.open = open.has(one.dataset.keep);
    [...element.querySelectorAll(".scroll")].forEach((one, at) => (one.scrollLeft = scrolled[at] || 0));
    if (focused) document.getElementById(focused)?.focus();
  }

  function live() {
    const every = Number(main.dataset.every) * 1000;
    const toggle = document.querySelector("[data-live-toggle]");
    const said = document.querySelector("[data-live-said]");
    let paused = sessionStorage.getItem("lepton-paused") === "1";
    let saidAt = Date.now();
    let timer = 0;

    function show() {
      toggle.setAttribute("aria-pressed", String(paused));
      toggle.closest(".live").hidden = false;
    }

    function told(text) {
      if (said.textContent !== text) said.textContent = text;
    }

    async function poll() {
      clearTimeout(timer);
      if (paused || document.hidden) return;
      let wait = every;
      try {
        const answer = await fetch(main.dataset.live, { headers: { accept: "application/json" }, cache: "no-store" });
        if (answer.status === 401) {
          location.reload(); // the session has ended: the daemon shows where to sign in
          return;
        }
        if (!answer.ok) throw new Error(String(answer.status));
        const figures = await answer.json();
        document.body.classList.remove("stale");
        for (const [name, html] of Object.entries(figures.parts)) refreshed(name, html);
        if (Date.now() - saidAt >= SAID_EVERY_MS) {
          saidAt = Date.now();
          told(figures.said);
        }
      } catch {
        document.body.classList.add("stale");
        told("The daemon does not answer; the figures are old.");
        wait = 3 * every;
      }
      timer = setTimeout(poll, wait);
    }

    toggle.addEventListener("click", () => {
      paused = !paused;
      sessionStorage.setItem("lepton-paused", paused ? "1" : "0");
      show();
      poll();
    });
    document.addEventListener("visibilitychange", poll);
    show();
    timer = setTimeout(poll, every);
  }

  function copying() {
    for (const button of document.querySelectorAll("[data-copy]")) {
      const field = document.getElementById(button.dataset.copy);
      button.hidden = false;
      button.addEventListener("click", async () => {
        field.select();
        try {
          await navigator.clipboard.writeText(field.value);
          button.textContent = "Copied";
        } catch {
          button.textContent = "Press Ctrl+C";
        }
      });
    }
    for (const field of document.querySelectorAll("[data-select]")) field.addEventListener("focus", () => field.select());
  }

  if (main) live();
  copying();
})();
