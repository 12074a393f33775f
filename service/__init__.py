"""The control plane of Tunesmith. Imports only the torch-free parts of `trainers`."""
