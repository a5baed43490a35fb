"""Images with text: readers of folders, tables and archives, synthetic scenes, and the corpus of a run."""
