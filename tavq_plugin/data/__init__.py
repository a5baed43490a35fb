"""Images with text: readers of folders, tables and archives; synthetic scenes; the corpus of a run."""
