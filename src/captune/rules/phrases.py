"""Words and phrases that rules and lint know: what openers, watermark talk and hedges look like, and which words carry none."""

from __future__ import annotations

import re

from captune.captions import UNSPACED

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
# What tells a person's guess beside these: told, but not taken out, since a sentence may hang on it.
UNCERTAIN = re.compile(
    HEDGES.pattern
    + r"|(?<!\w)(?:(?:might|could|may|must) have|must be|(?:quite |very |most |more )?(?:likely|unlikely)|hard to (?:tell|say)|"
    r"difficult to (?:tell|say)|not (?:sure|certain|clear)|unsure|unclear|suggest(?:s|ing|ive of)|as if|as though|"
    r"supposedly|i believe|i suppose|or something|or so)(?!\w)|\(\?+\)",
    re.IGNORECASE,
)
# Words of taste, which describe who looks and not what is seen. Nice with a capital letter may be the town.
SUBJECTIVE = re.compile(
    r"(?<!\w)(?:beautiful(?:ly)?|gorgeous(?:ly)?|stunning(?:ly)?|amazing(?:ly)?|awesome|wonderful(?:ly)?|lovely|adorable|cute|"
    r"breathtaking|fantastic|fabulous|incredibl[ey]|magnificent|marvell?ous|perfect(?:ly)?|(?-i:nice(?:ly)?)|nice (?:photo|"
    r"picture|image|shot)|pretty|handsome|charming|delightful|attractive|good-looking|ugly|hideous|boring|interesting|impressive|"
    r"superb|excellent|exquisite|spectacular|splendid|picturesque|enchanting|captivating|mesmeri[sz]ing|eye-catching|"
    r"aesthetic(?:ally pleasing)?|great (?:atmosphere|light|photo|picture|image|shot|view)|(?:best|high|top) quality|"
    r"masterpiece)(?!\w)",
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
# Words that every base knows; a trigger word of this kind already means something to it.
COMMON_WORDS = _words(
    "man woman person boy girl child baby people dog cat bird horse fish bear animal creature monster robot toy "
    "doll car truck bus bike train plane boat house building room chair table cup bottle bag hat shoe shirt dress "
    "tree flower plant food cake fruit apple ball book phone camera clock computer face hand eye hair style art "
    "painting portrait landscape city beach mountain forest water sky sun moon star snow night pet puppy kitten "
    "kitty wolf fox lion tiger elephant monkey rabbit bunny mouse rat pig cow sheep goat duck goose chicken eagle "
    "owl snake dragon frog turtle shark whale bee spider unicorn lady guy gentleman kid king queen prince princess "
    "knight soldier doctor nurse teacher student artist model hero heroine warrior wizard witch angel demon devil "
    "ghost zombie vampire alien cyborg android astronaut clown pirate mother father sister brother mom dad friend "
    "wife husband girlfriend boyfriend grandma grandpa bread cheese pizza coffee tea wine beer milk egg ice candy "
    "chocolate sugar guitar piano violin drum sword gun knife shield crown ring necklace watch glasses backpack "
    "suitcase box basket bowl plate spoon fork lamp candle sofa bed door window wall floor roof garden park street "
    "road bridge tower castle church school office shop kitchen bathroom bedroom vase statue sculpture jacket coat "
    "skirt suit uniform boots sneaker sock glove scarf mask wig beard nose mouth ear arm leg foot finger head body "
    "heart rock stone sand fire smoke cloud rain wind storm lightning rainbow sunset sunrise spring summer autumn "
    "winter river lake sea ocean island desert field hill grass leaf rose tulip lily daisy sunflower red orange "
    "yellow green blue purple pink brown black white grey gray gold golden silver big small large tiny huge tall "
    "short long old young new happy sad angry funny cute pretty fluffy furry shiny dark bright soft hard hot cold "
    "wet dry clean dirty round square magic cool sweet wild crazy lazy lucky cartoon anime manga comic sketch "
    "drawing watercolor oil pixel logo icon poster photo picture image video movie game music dance sport football "
    "soccer tennis basketball name love life time day morning evening home world anna emma sophia olivia mia lisa "
    "laura sarah julia maria kate alice lucy jane mary eva clara lena nina john james david michael peter paul "
    "thomas max tom tim ben sam jack leo luke mark alex chris daniel robert bob bella luna charlie buddy rocky "
    "molly coco rex simba"
)
# Rare tokens that are passed from guide to guide as trigger words.
HANDED_ON = _words("sks ohwx zwx shs zkz tok txcl")
_SPACED = rf"(?:(?![{UNSPACED}])\w)+"
_WORD = re.compile(rf"{_SPACED}(?:['\u2019-]{_SPACED})*|[{UNSPACED}]+")


def key(word: str) -> str:
    """The word as it is compared: small letters, singular where that is a matter of one s."""
    small = word.lower().removesuffix("'s").removesuffix("\u2019s")
    return small[:-1] if len(small) > 3 and small.endswith("s") and not small.endswith(("ss", "us", "is")) else small


def words(text: str) -> list[str]:
    """The words of a text as they stand there, with hyphens and apostrophes within; what is written without spaces is one."""
    return _WORD.findall(text)
