"""What the model family does with text and frames: prompts, patches, positions.  Knows no weights and no HTTP."""
