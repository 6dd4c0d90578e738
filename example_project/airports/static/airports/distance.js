// A page without HTMX: it starts a job and follows it through the job's JSON document.

const form = document.querySelector("#distance");
const bar = document.querySelector("progress");
const says = document.querySelector("[role=status]");

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch(form.action, { method: "POST", body: new FormData(form) });
  bar.hidden = false;
  const job = await watch(await answer.json(), show);
  if (job?.status === "completed") {
    says.textContent = `${job.result.airports.join(" and ")}: ${job.result.km.toLocaleString("en")}\u00a0km`;
  }
});

function show(job) {
  bar.value = job.progress ?? 0;
  says.textContent = job.status_msg || job.status_display;
}

// started: the answer of start_distance. Calls show(job) after every request. Returns the job when it has ended, or
// null if it no longer exists.
async function watch(started, show) {
  for (;;) {
    const response = await fetch(started.status).catch(() => null); // null: no network
    if (response?.status === 404) return null; // the job is gone or the link has expired
    const job = response?.ok ? await response.json() : null;
    if (job) show(job);
    if (job?.done) return job;
    const seconds = Number(response?.headers.get("Retry-After")) || 5;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  }
}
