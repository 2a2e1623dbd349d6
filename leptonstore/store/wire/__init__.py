"""How a daemon and its clients talk: requests, errors, and the connection. docs/WIRE.md is the specification."""
