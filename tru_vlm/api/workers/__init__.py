"""Workers: where they run, what their loop does, and how the HTTP process reaches them.  They know no HTTP."""
