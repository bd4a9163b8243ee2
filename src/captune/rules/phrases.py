"""Words and phrases that rules and lint know: what openers, watermark talk and hedges look like, and which words carry none."""

from __future__ import annotations

import re

# How captioners begin captions with words that say nothing about the picture.
OPENERS = re.compile(
    r"(?:(?:this|here|it|there)(?: is|'s)\s+)?"
    r"(?:(?:a|an|the)\s+)?"
    r"(?:(?:very|extreme|blurry|digital|color|colour|colorful|colourful|black and white|stock|close|high quality)\s+)*"
    r"(?:close[ -]?up(?:\s+(?:photo|photograph|picture|image|shot|view|portrait))?"
    r"|photo|photograph|photography|picture|image|shot|view|snapshot|drawing|illustration|rendering|screenshot)\s+"
    r"(?:of|showing|depicting|that shows|which shows)\s+"
    r"|(?:the|this)\s+(?:image|photo|photograph|picture)\s+(?:shows|depicts|features|displays|captures|is of)\s+"
    r"|(?:there is|there are|arafed|araffe|araffes)\s+",
    re.IGNORECASE,
)
# What captioners say of marks that are on a picture, or that they only believe to be there.
WATERMARKS = re.compile(
    r"(?<!\w)(?:watermark(?:s|ed)?|signatures?|copyrights?(?: notice)?|web ?(?:site|address)(?: name| url)?|urls?|patreon|"
    r"shutterstock|getty images|stock photo id)(?!\w)",
    re.IGNORECASE,
)
# Uncertain wording: the reader of a caption is a model that cannot ask back.
HEDGES = re.compile(
    r"(?<!\w)(?:(?:it )?(?:seems|appears)(?: to be| to have| to| like| that)?|seemingly|apparently|perhaps|maybe|possibly|"
    r"probably|presumably|i think|i guess|(?:what )?looks like|might be|may be|could be|some sort of|some kind of|"
    r"kind of|sort of)(?!\w)",
    re.IGNORECASE,
)
# Words of taste, which describe who looks and not what is seen.
SUBJECTIVE = re.compile(
    r"(?<!\w)(?:beautiful(?:ly)?|gorgeous|stunning|amazing|awesome|wonderful|lovely|adorable|breathtaking|fantastic|"
    r"incredible|magnificent|perfect|nice|ugly|boring|interesting|impressive|best quality|masterpiece)(?!\w)",
    re.IGNORECASE,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LISTS = ("openers", "watermarks", "hedges")

ARTICLES = _words("a an the")
POSSESSIVES = _words("its his her their")
PREPOSITIONS = _words(
    "about above across against along among around at behind below beneath beside between by down for from in "
    "inside into near of off on onto out outside over past through to toward towards under underneath up upon "
    "with within without"
)
CONJUNCTIONS = _words("and or but")
TAKE_AN_OBJECT = _words("wearing has have having holding showing featuring including carrying")
COPULAS = _words("is are was were be")
FUNCTION_WORDS = (
    ARTICLES
    | POSSESSIVES
    | PREPOSITIONS
    | CONJUNCTIONS
    | TAKE_AN_OBJECT
    | COPULAS
    | _words(
        "it he she they this that these those there here which who whose what where while when as than then so not no "
        "one some any each every all both very more most other another i you we him them been being do does did can "
        "will would front next left right middle center centre picture photo image background foreground"
    )
)
# Nouns that every base knows; a trigger word of this kind already means something to it.
COMMON_NOUNS = _words(
    "man woman person boy girl child baby people dog cat bird horse fish bear animal creature monster robot toy "
    "doll car truck bus bike train plane boat house building room chair table cup bottle bag hat shoe shirt dress "
    "tree flower plant food cake fruit apple ball book phone camera clock computer face hand eye hair style art "
    "painting portrait landscape city beach mountain forest water sky sun moon star snow night"
)
# Rare tokens that are passed from guide to guide as trigger words.
HANDED_ON = _words("sks ohwx zwx shs zkz tok")


def key(word: str) -> str:
    """The word as it is compared: small letters, singular where that is a matter of one s."""
    small = word.lower().removesuffix("'s").removesuffix("\u2019s")
    return small[:-1] if len(small) > 3 and small.endswith("s") and not small.endswith(("ss", "us", "is")) else small


def words(text: str) -> list[str]:
    """The words of a text as they stand there, hyphens and apostrophes within them kept."""
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text)
