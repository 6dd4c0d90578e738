// Beside HTMX: a hidden tab rests. Nothing here is needed for a page to work.
(() => {
  "use strict";
  const pollers = () => document.querySelectorAll("[data-peasy-poll]");

  const hold = (event) => {
    const source = event.target.closest?.("[data-peasy-poll]");
    if (source && document.hidden) event.preventDefault();
  };
  document.addEventListener("htmx:beforeRequest", hold); // HTMX 2
  document.addEventListener("htmx:before:request", hold); // HTMX 4

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    for (const poller of pollers()) poller.dispatchEvent(new CustomEvent("peasy:refresh"));
  });
})();
