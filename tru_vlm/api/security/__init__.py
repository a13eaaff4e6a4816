"""The door: who may come in, from where, how often and how slowly.  Routes are behind it and check nothing of this."""
