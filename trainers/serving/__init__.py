"""Serving a deployed model over HTTP: `lepton deploy serve`.

    with ModelServer(Served.of(load_bundle(store, "mnist-cnn"))) as server:
        requests.post(server.url + "/predict", json={"inputs": images.tolist()})

A request's way: leptonstore.web (connection, id, host, errors, log) -> app.py (token, routes) -> payload.py (bytes -> rows) ->
batcher.py (rows of several requests -> one batch) -> steady.py (the model, in batch sizes that agree) -> payload.py (answer).
limits.py has every bound, refusal.py every error, tokens.py who is let in, metrics.py what is counted, server.py starts and stops it all.
Needs the extra `serve`; docs/serving.md is for users.
"""
