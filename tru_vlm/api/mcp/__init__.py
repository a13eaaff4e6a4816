"""``/mcp``, and what its tools ask of the server.  The tools themselves are ``tru_vlm.assistants``."""
