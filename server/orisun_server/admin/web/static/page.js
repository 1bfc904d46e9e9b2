// The few things that need a script: live events, and saying so when a part of the page could not be refreshed.
"use strict";

const MOST_ROWS = 200;

function liveTail(button) {
  const rows = document.getElementById("events");
  const status = document.getElementById("live-status");
  let source = null;

  function stop(text) {
    if (source) source.close();
    source = null;
    button.setAttribute("aria-pressed", "false");
    button.textContent = "Follow live";
    status.textContent = text;
  }

  button.hidden = false;
  button.addEventListener("click", () => {
    if (source) return stop("Paused.");
    source = new EventSource(button.dataset.url);
    button.setAttribute("aria-pressed", "true");
    button.textContent = "Pause";
    status.textContent = "Waiting for events …";
    source.addEventListener("open", () => { status.textContent = "Live: new events appear on top."; });
    source.addEventListener("message", (message) => {
      // the server escapes what it renders
      rows.insertAdjacentHTML("afterbegin", message.data);
      while (rows.children.length > MOST_ROWS) rows.lastElementChild.remove();
      const empty = document.getElementById("no-events");
      if (empty) empty.remove();
    });
    source.addEventListener("ended", (message) => stop(message.data));
    source.addEventListener("error", () => {
      if (source && source.readyState === EventSource.CLOSED) stop("The live view ended.");
      else status.textContent = "Connection lost, trying again …";
    });
  });
}

document.addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("live");
  if (button && window.EventSource) liveTail(button);
  // browsers have a clipboard for pages only over https, and on this machine
  for (const copy of navigator.clipboard ? document.querySelectorAll("[data-copy]") : []) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(copy.dataset.copy).textContent);
      copy.textContent = "Copied";
    });
  }
});

document.addEventListener("htmx:responseError", () => document.body.classList.add("stale"));
document.addEventListener("htmx:sendError", () => document.body.classList.add("stale"));
document.addEventListener("htmx:afterOnLoad", () => document.body.classList.remove("stale"));
