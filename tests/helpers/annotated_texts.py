"""Descriptions written and annotated by hand: `[noun phrase]` without its determiner, `*content` words.

Determiners, also "several", "many", "some", stay outside; numbers, adjectives and participles before the noun
inside, with adverbs marked `~`; "of" separates; a possessive holds together. Compound prepositions
("in front of") are no content.
"""

import re

MARKED = (
    "A [*little *boy] in a [*striped *sweater] *stands in front of a [*tall *wooden *gate]. He is *holding a"
    " [*yellow *balloon] in his [*left *hand], and the [*sky] behind him is *grey.",
    "[*Two *brown *horses] *graze on a [*steep *green *hillside]. The [*smaller *horse] has a [*white *stripe] down"
    " its [*nose]. A [*broken *fence] *runs along the [*dirt *road].",
    "The [*image] *shows a [*busy *city *street] at [*night]. Several [*parked *cars] *line the [*curb], while a"
    " [*red *bus] *passes a [~brightly *lit *shop *window].",
    "An [*old *woman] *wearing a [*black ~and *white *scarf] *sits on a [*park *bench]. She is *feeding some"
    " [*pigeons] with [*bread *crumbs]. There are [*three *empty *cups] next to her.",
    "In the [*foreground], a [*round *table] is *covered with a [*blue *cloth]. On it are a [*glass] of"
    " [*orange *juice], a [*half-eaten *sandwich] and a [*bowl] of [*fresh *strawberries].",
    "The [*man~'s *hat] is *made of [*straw]. His [*dog], a [*large *shaggy *animal] with a [*wet *coat], *jumps over"
    " a [*fallen *tree *trunk] and *lands in the [*shallow *water].",
    "[*Young *skier] in a [*bright *orange *jacket] *races down a [*snowy *slope]. [*Tall *pine *trees] *surround the"
    " [*track], and many [*spectators] are *watching from behind a [*metal *barrier].",
    "[*Four *children] are *playing [*football] on a [*sandy *beach]. The [*tallest *girl] *kicks a [*muddy *ball]"
    " towards a [*goal] that isn't *visible in the [*picture]. [*Small *waves] *break on the [*shore].",
    "A [*stone *bridge] *crosses a [*narrow *river]. [*Green *ivy] *hangs from its [*walls]; a [*rowing *boat] *floats"
    " below. The [*water] *reflects the [*soft, *golden *light] of the [*evening].",
    "This [*photograph] *depicts a [*kitchen] with [*white *cupboards] and a [~very *large *silver *refrigerator]."
    " A [*cat] is *sleeping on the [*second *shelf]. The [*number] *7 is *painted on the [*door].",
    "[*Man] *riding a [*motorcycle] through [*deep *mud]. His [*helmet] and [*gloves] are *covered in [*dirt], but the"
    " [*rider] doesn't *seem *worried. A [*crowd] of [*smiling *people] *cheers.",
    "A [*musician] with a [*long *beard] *plays an [*acoustic *guitar] on a [*dark *stage]. [*Purple *lamps] *shine"
    " down on him. Behind the [*singer] you can *see a [*drum *kit] and [*two *tall *speakers].",
)
SENTENCES = (2, 3, 2, 3, 2, 2, 2, 3, 3, 3, 3, 3)


def read(marked: str) -> tuple[str, set[str], set[str]]:
    """The plain text, its content words and its noun phrases."""
    words = {word.lower() for word in re.findall(r"\*(\w+(?:-\w+)*)", marked)}
    bare = re.sub(r"[*~]", "", marked)
    phrases = {phrase.lower() for phrase in re.findall(r"\[(.*?)\]", bare)}
    return bare.replace("[", "").replace("]", ""), words, phrases
