"""The WebSocket: its messages, one open connection, and how uvicorn is made to drain it."""
