"""After training: a run as one object, tokens of images and back, words of codes, pages to look at."""
