"""One page that shows what a run has learnt: images beside their texts, codes, words and where the plan sends them."""
