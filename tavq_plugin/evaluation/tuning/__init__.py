"""`tavq tune`: how strongly each method pulls on the host, chosen by one rule under one budget."""
