"""The control plane: the daemon's operations, its content and its health over HTTP. docs/http.md is for users.

app.py        the application: every request's way in and out     table.py     every route, for the router and for OpenAPI
gateway.py    /v1/<operation>: what Flight carries                content.py   /content: chunks, versions, rows, values, files
ranges.py     conditions and ranges of HTTP, as pure functions    sending.py   bodies, in steps, as fast as they are taken
work.py       the threads that may block                          server.py    start, drain, stop
pages*.py     the dashboard
"""
