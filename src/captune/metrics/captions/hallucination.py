"""hallucination: things that a caption names and no reference does.

Definition, Hallucinated_objects: of the things named in a caption, out of the list below, the share that no reference of
the same picture names; a thing counts once per caption, by any of its words, singular or plural. The list has the 80
kinds of objects of COCO with their usual words. For the corpus, all such things over all things named. Only captions with
at least two references are judged, because a single one leaves out too much of a picture.
Definition, Unsupported_words: of a caption's content words (letters only, no function words, a plural s taken off) the
share that no reference has. It works for any pictures, but counts synonyms and true details as well.
Both count what the references left out, not what is absent from the picture: they are upper bounds, and fall with every
further reference. CHAIR proper also looks at the objects annotated in the picture, which captions alone cannot give.
Range: 0 to 1, lower is better. Source: after Rohrbach et al. 2018 (CHAIR-i), by references alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from captune.metrics.captions import CaptionScores, Unavailable
from captune.metrics.captions._captions import Captions

FEWEST_REFERENCES = 2
_NAN = float("nan")
# One kind a line, its words behind it; two words are looked for as such.
_OBJECTS = """
person: man woman boy girl child kid people men women children guy lady baby toddler player skier surfer skateboarder
    snowboarder rider boys girls person skater batter
bicycle: bicycle bike
car: car taxi suv sedan
motorcycle: motorcycle motorbike scooter
airplane: airplane plane jet aircraft
bus: bus
train: train locomotive
truck: truck pickup
boat: boat ship canoe kayak sailboat
traffic light: traffic_light stoplight
fire hydrant: hydrant
stop sign: stop_sign
parking meter: parking_meter
bench: bench
bird: bird duck pigeon seagull goose parrot owl geese
cat: cat kitten
dog: dog puppy
horse: horse pony foal
sheep: sheep lamb
cow: cow cattle bull calf ox
elephant: elephant
bear: bear
zebra: zebra
giraffe: giraffe
backpack: backpack
umbrella: umbrella parasol
handbag: handbag purse
tie: tie necktie
suitcase: suitcase luggage
frisbee: frisbee
skis: ski
snowboard: snowboard
sports ball: ball baseball football soccer_ball tennis_ball
kite: kite
baseball bat: bat baseball_bat
baseball glove: glove mitt
skateboard: skateboard
surfboard: surfboard
tennis racket: racket racquet
bottle: bottle
wine glass: wine_glass
cup: cup mug
fork: fork
knife: knife knives
spoon: spoon
bowl: bowl
banana: banana
apple: apple
sandwich: sandwich burger hamburger
orange: orange_slice oranges
broccoli: broccoli
carrot: carrot
hot dog: hot_dog hotdog
pizza: pizza
donut: donut doughnut
cake: cake cupcake
chair: chair stool armchair
couch: couch sofa
potted plant: potted_plant houseplant
bed: bed
dining table: table
toilet: toilet
tv: tv television
laptop: laptop
mouse: computer_mouse
remote: remote
keyboard: keyboard
cell phone: phone cellphone smartphone
microwave: microwave
oven: oven stove
toaster: toaster
sink: sink
refrigerator: refrigerator fridge
book: book
clock: clock
vase: vase
scissors: scissors
teddy bear: teddy_bear
hair drier: hair_dryer hair_drier
toothbrush: toothbrush
"""
_FUNCTION_WORDS = (
    "a an the this that these those some any each every all both no not and or but nor so if while as than then of in on at by "
    "for from with without to into onto over under above below near next beside behind front between through during up down "
    "out off around across along against among about is are was were be been being am do does did has have had having can "
    "could will would shall should may might must it its he she they them his her their him we us our you your i my me who "
    "whom whose which what when where why how there here one two three four five six several many few much more most very too "
    "also just only other another same such together"
)
_NOT_CONTENT = frozenset(_FUNCTION_WORDS.split())


def _kinds() -> dict[str, str]:
    kinds: dict[str, str] = {}
    for line in _OBJECTS.replace("\n    ", " ").strip().splitlines():
        kind, _, words = line.partition(":")
        for word in words.split():
            plain = word.replace("_", " ")
            kinds |= {form: kind for form in (plain, plain + "s", plain + "es")}
    return kinds


_KIND_OF = _kinds()


class Hallucination:
    """Hallucinated_objects and Unsupported_words; Unavailable where no caption has two references."""

    def score(self, captions: Captions) -> CaptionScores:
        if all(len(group) < FEWEST_REFERENCES for group in captions.references):
            raise Unavailable(f"needs at least {FEWEST_REFERENCES} references per caption: one leaves out too much")
        objects: list[tuple[int, int]] = []
        words: list[tuple[int, int]] = []
        for candidate, group in zip(captions.candidates, captions.references, strict=True):
            judged = len(group) >= FEWEST_REFERENCES
            objects.append(_unsaid(things_in(candidate), map(things_in, group)) if judged else (0, 0))
            words.append(_unsaid(_content(candidate), map(_content, group)) if judged else (0, 0))
        columns = {"Hallucinated_objects": objects, "Unsupported_words": words}
        corpus = {name: _share(*map(sum, zip(*pairs, strict=True))) for name, pairs in columns.items()}
        return CaptionScores(
            {name: value for name, value in corpus.items() if value == value},  # NaN where nothing was named at all
            {name: [_share(*pair) for pair in pairs] for name, pairs in columns.items()},
        )


def things_in(text: str) -> set[str]:
    """The kinds of objects that a text names; two words go before one, so that a hot dog is no dog."""
    words, kinds, place = text.lower().split(), set(), 0
    while place < len(words):
        for length in (2, 1):
            kind = _KIND_OF.get(" ".join(words[place : place + length]))
            if kind is not None:
                kinds.add(kind)
                place += length - 1
                break
        place += 1
    return kinds


def _content(text: str) -> set[str]:
    words = [word for word in text.lower().split() if word.isalpha() and word not in _NOT_CONTENT]
    return {word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words}


def _unsaid(named: set[str], references: Iterable[set[str]]) -> tuple[int, int]:
    return len(named - set().union(*references)), len(named)


def _share(unsaid: int, named: int) -> float:
    return unsaid / named if named else _NAN
