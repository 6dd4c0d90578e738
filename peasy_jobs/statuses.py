"""The statuses of a job."""

ENQUEUED, SCHEDULED, ONGOING, COMPLETED, FAILED, CANCELLED = "QSOCFX"
FINISHED = (COMPLETED, FAILED, CANCELLED)

# What the pages and the JSON document call the statuses: the letters in the database are nobody else's business.
WORDS = {
    ENQUEUED: "enqueued",
    SCHEDULED: "scheduled",
    ONGOING: "ongoing",
    COMPLETED: "completed",
    FAILED: "failed",
    CANCELLED: "cancelled",
}
