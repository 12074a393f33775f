"""One file a method; see trainers/registry.py."""
