"""The HTTP side and the LitServe side: the only package that imports litserve, fastapi or starlette."""
