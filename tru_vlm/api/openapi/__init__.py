"""The OpenAPI description, as far as routes share it.  A package with bodies of its own describes them itself."""
