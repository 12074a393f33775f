"""The training side of Tunesmith: everything that runs on Ray. Never imports `service`."""
