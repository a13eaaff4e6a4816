"""Bytes from outside to a checked local file: spool, multipart, data URIs, safe fetch.  Knows no HTTP framework."""
