// Complements HTMX: pauses polling in hidden tabs and in lists that are in use. Pages work without.
(() => {
  "use strict";
  const SWITCH_KEY = "peasy-live-updates";
  const POLLER = "[data-peasy-poll]";
  document.documentElement.classList.add("peasy-script");
  const all = (selector) => document.querySelectorAll(selector);

  // The switch "Live updates". Access to the storage may be forbidden.
  const isSwitchedOff = () => {
    try { return localStorage.getItem(SWITCH_KEY) === "off"; } catch { return false; }
  };
  const saveSwitch = (isOn) => {
    try { localStorage.setItem(SWITCH_KEY, isOn ? "on" : "off"); } catch { /* not saved */ }
  };
  const refresh = () => {
    for (const poller of all(POLLER)) poller.dispatchEvent(new CustomEvent("peasy:refresh"));
  };

  // A list pauses while a row is selected, a control has the focus, or text in it is selected.
  const USED = 'input[name="pk"]:checked, form :is(input, select, button):focus';
  const isUsed = (poller) => poller.querySelector(USED);
  const hasSelectedText = (poller) => {
    const text = getSelection();
    return !text.isCollapsed && text.containsNode(poller, true);
  };
  const isPaused = (poller) => {
    if (!poller.hasAttribute("data-peasy-pauses")) return false;
    return isSwitchedOff() || isUsed(poller) || hasSelectedText(poller);
  };
  const skipPoll = (event) => {
    const poller = event.target.closest?.(POLLER);
    if (poller && (document.hidden || isPaused(poller))) event.preventDefault();
  };
  document.addEventListener("htmx:beforeRequest", skipPoll); // HTMX 2
  document.addEventListener("htmx:before:request", skipPoll); // HTMX 4

  // A site may have configured HTMX 2 to show error pages. For HTMX 4, attributes prevent that.
  document.addEventListener("htmx:beforeSwap", ({ target, detail }) => {
    if (target.matches?.(POLLER) && detail.xhr?.status >= 400) detail.shouldSwap = false;
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });

  const showPausedNote = () => {
    for (const note of all("[data-peasy-paused]")) {
      note.hidden = isSwitchedOff() || !isUsed(note.closest("[data-peasy-pauses]") ?? note);
    }
  };
  document.addEventListener("change", ({ target }) => {
    if (target.matches("[data-peasy-all]")) {
      const boxes = target.form.querySelectorAll('input[name="pk"]');
      for (const box of boxes) box.checked = target.checked;
    }
    if (target.matches("[data-peasy-switch]")) {
      saveSwitch(target.checked);
      refresh();
    }
    showPausedNote();
  });
  for (const name of ["focusin", "focusout"]) {
    document.addEventListener(name, () => setTimeout(showPausedNote));
  }

  // Durations of running jobs go on between polls.
  const UNITS = [["d", 86400, "h", 3600], ["h", 3600, "min", 60], ["min", 60, "s", 1]];
  const durationText = (seconds) => {
    for (const [unit, size, smallerUnit, smallerSize] of UNITS) {
      const smaller = Math.floor((seconds % size) / smallerSize);
      if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ${smaller} ${smallerUnit}`;
    }
    return `${seconds} s`;
  };
  const startedAt = new WeakMap();
  const updateDurations = () => {
    for (const element of all("[data-peasy-elapsed]")) {
      const elapsed = 1000 * Number(element.dataset.peasyElapsed);
      if (!startedAt.has(element)) startedAt.set(element, performance.now() - elapsed);
      if (document.hidden || !getSelection().isCollapsed) continue;
      const seconds = Math.floor((performance.now() - startedAt.get(element)) / 1000);
      const text = durationText(seconds);
      if (element.textContent !== text) element.textContent = text;
    }
  };

  const start = () => {
    for (const box of all("[data-peasy-switch]")) box.checked = !isSwitchedOff();
    updateDurations();
    setInterval(updateDurations, 1000);
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
