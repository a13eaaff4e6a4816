"""Videos and images that are kept: upload once, ask many.  It knows no HTTP, and nothing of what is asked."""
