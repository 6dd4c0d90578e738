// Beside HTMX: a hidden tab rests, and so does a table that somebody works in. Nothing here is needed for a page to work.
(() => {
  "use strict";
  const KEY = "peasy-live-updates";
  const page = document.documentElement;
  page.classList.add("peasy-script");
  const all = (selector) => document.querySelectorAll(selector);
  const isOff = () => {
    try { return localStorage.getItem(KEY) === "off"; } catch { return false; } // storage may be forbidden
  };
  const refresh = () => {
    for (const poller of all("[data-peasy-poll]")) poller.dispatchEvent(new CustomEvent("peasy:refresh"));
  };

  const isUsed = (poller) => poller.querySelector('input[name="pk"]:checked, form :is(input, select, button):focus');
  const isBusy = (poller) => {
    const text = getSelection();
    return isOff() || isUsed(poller) || (!text.isCollapsed && text.containsNode(poller, true));
  };
  const hold = (event) => {
    const source = event.target.closest?.("[data-peasy-poll]");
    if (!source) return;
    if (document.hidden || (source.hasAttribute("data-peasy-pauses") && isBusy(source))) event.preventDefault();
  };
  document.addEventListener("htmx:beforeRequest", hold); // HTMX 2
  document.addEventListener("htmx:before:request", hold); // HTMX 4
  // HTMX 4 is told by the element itself; a site may have told HTMX 2 to swap in what an error says.
  document.addEventListener("htmx:beforeSwap", ({ target, detail }) => {
    if (target.matches?.("[data-peasy-poll]") && detail.xhr?.status >= 400) detail.shouldSwap = false;
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });

  const note = () => {
    for (const text of all("[data-peasy-paused]")) {
      text.hidden = isOff() || !isUsed(text.closest("[data-peasy-pauses]") ?? text);
    }
  };
  document.addEventListener("change", ({ target }) => {
    if (target.matches("[data-peasy-all]")) {
      for (const box of target.form.querySelectorAll('input[name="pk"]')) box.checked = target.checked;
    }
    if (target.matches("[data-peasy-switch]")) {
      try { localStorage.setItem(KEY, target.checked ? "on" : "off"); } catch { /* until the page is left */ }
      refresh();
    }
    note();
  });
  for (const name of ["focusin", "focusout"]) document.addEventListener(name, () => setTimeout(note));

  // How long something has been running goes on while the server has nothing new.
  const seen = new WeakMap();
  const written = (s) => {
    if (s < 60) return `${s} s`;
    const [unit, smaller, size, step] = s < 3600 ? ["min", "s", 60, 1] : s < 86400 ? ["h", "min", 3600, 60] : ["d", "h", 86400, 3600];
    return `${Math.floor(s / size)} ${unit} ${Math.floor((s % size) / step)} ${smaller}`;
  };
  const tick = () => {
    for (const element of all("[data-peasy-elapsed]")) {
      if (!seen.has(element)) seen.set(element, performance.now() - 1000 * Number(element.dataset.peasyElapsed));
      if (!document.hidden && getSelection().isCollapsed) {
        const text = written(Math.floor((performance.now() - seen.get(element)) / 1000));
        if (element.textContent !== text) element.textContent = text;
      }
    }
  };
  const start = () => {
    for (const box of all("[data-peasy-switch]")) box.checked = !isOff();
    tick();
    setInterval(tick, 1000);
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
