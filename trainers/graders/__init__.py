"""Graders: what scores a sample. Free of torch and of the service, so that a run on Ray can use them as the gateway does."""
