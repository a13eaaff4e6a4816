"""Several servers behind one address, on Ray Serve: what routes requests to them and starts them; see docs/adr/0028."""
