"""How a daemon and its clients talk: requests, errors, and the connection. docs/FORMAT.md (LWR1) is the specification."""
