"""One module per group of routes; each builds a router over what it is given."""
