"""HTTP with bounds: what the daemon and the model server have in common."""
