"""Images with text: packs, folders, drawn scenes."""
