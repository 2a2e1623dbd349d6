"""The protocol of the log and of garbage collection: a model that is searched, and the real thing in random schedules."""
