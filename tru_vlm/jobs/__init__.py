"""Jobs: many questions, or one about a long video, that are answered in the background and survive a restart."""
