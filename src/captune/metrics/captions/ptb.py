"""Penn Treebank tokens as the COCO evaluation makes them, without Java.

The rules are those of the Stanford tokenizer as that evaluation calls it (release 3.4.1, lower case, one caption a line),
found by comparing with it on some ten thousand strings: at every place the rule that reads furthest wins, the first of
those that read as far. Then quotes and most punctuation are dropped. Brackets stay, as "-lrb-": the evaluation's list of
punctuation has them in capitals, which no longer occur in lower case.

Each caption is read on its own. The original reads all captions as one text, so that "plan B." loses its full stop there
when the next caption begins with "A" or "The"; here a score does not depend on the order of the captions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from captune.metrics.captions._ptb_characters import DIGITS, LETTERS, SIGNS, ranges

DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# These keep their full stop, in any case. The first stand before a name; the others may end a sentence.
_BEFORE_NAMES = (
    "adj adm adv assoc asst attys? ave brig capt cf cie cmdr col comdr cpl dept det drs? elec ens ft gen govs? hon "
    "insp invt jos lieut lt maj messrs mfg mlle mme mrs? ms mtg? natl pfc ph pres profs? pvt reps? rev sens? sfc sgt "
    "spc ste? supts? treas vs wm"
)
_ABBREVIATIONS = (
    "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif colo conn corp cos? ct dak dec esq est etc ext feb fla "
    "fri ga inc ind intl jan jr jul jun kans? ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc "
    "pp?tys? ptes? rd rt sept? seq sq sr sys tel tenn thu thurs tues? univ va vt wed wisc? wyo"
)
_STATES = "Az Ark Del Ill La Mass Miss Ore Pa Tex Wash"  # in lower case, words
_NUMBERED = "art ca figs? nos? op pp prop"  # keep it before a number
# A single letter before these ends a sentence; elsewhere its full stop stays with it, as in J. R. R. Tolkien.
_STARTERS = (
    "A THE About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr. Ms. Now "
    "Once One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"
)
_EXTENSIONS = (
    "bat bmp c class cgi cpp dll docx? exe gif gz h html? jar java jpe?g mov mp3 pdf php pl png pptx? ps py sql tar txt wav x "
    "xml zip"
)
_SPLIT = frozenset(["cannot", "gonna", "wanna", "gotta", "lemme", "gimme"])  # words of letters alone that are two


def _any(words: str) -> str:
    return "(?:" + "|".join(map(re.escape, words.split())).replace(r"\?", "?") + ")"


def _then(pattern: str) -> str:
    """What must follow a token and counts as read, but is read again for the next one."""
    return f"(?=(?P<then>{pattern}))"


_LETTER, _DIGIT = f"[{ranges(LETTERS)}]", f"[{ranges(DIGITS)}]"
_WORD_CHARACTER = f"[{ranges(LETTERS)}{ranges(DIGITS)}]"
_APOSTROPHE = "(?:['\x92’]|&apos;)"
_TICK = "(?:['`\x91\x92‘’‛]|&apos;)"
_BLANK = "[ \t\u00a0\u2000-\u200a\u3000]"
_GAP = f"(?:{_BLANK}|[\r\n\x0b\x0c\x85\u2028\u2029]|$)"
_WORD = f"{_LETTER}{_WORD_CHARACTER}*(?:[.!?]{_LETTER}{_WORD_CHARACTER}*)*"
_PART = f"(?:[dDoOlL]{_TICK}{_WORD_CHARACTER}{{2,}}|{_WORD_CHARACTER}+)"
_NUMBER = f"(?:{_DIGIT}*(?:[.:,\xad\u066b\u066c]{_DIGIT}+)+|{_DIGIT}+)"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"
_LETTERS_BY_AND = "[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"
_ENDING = f"{_APOSTROPHE}(?i:[msd]|re|ve|ll)"
_NOT = f"[nN]{_TICK}[tT]"
_IN_URL, _URL_END = r'[^ \t\n\f\r"<>|()]', r'[^ \t\n\f\r"<>|.!?(){},-]'
_IN_MAIL, _IN_MAIL_PART = r'[^ \t\n\f\r"<>|()\u00a0]', r'[^ \t\n\f\r"<>|().\u00a0]'
_TAG_NAME = "[A-Za-z][A-Za-z0-9:.-]*"
_QUOTE = "[`‘’‚‛“”„‟\x91\x92\x93\x94‹›«»]"

_RULES = (
    # words that are two
    "(?i:(can)(not))",
    "(?i:(gon|wan)(na))",
    "(?i:(got)(ta))",
    "(?i:(lem|gim)(me))",
    "(?i:(more)('n))",
    f"(?i:('t){_then('is|was')})",
    # markup
    rf"(<(?:[!?][A-Za-z-][^>\r\n]*|/?{_TAG_NAME}(?: +{_TAG_NAME}(?:=(?:'[^'\r\n]*'|\"[^\"\r\n]*\"))?)* */?)>)",
    "((?i:&amp;))",
    "(?i:&nbsp;)",
    # words, and their endings
    f"({_WORD}){_then(_ENDING)}",
    f"([A-Za-z]*[A-MO-Za-mo-z]){_then(_NOT)}",
    f"({_WORD})",
    f"({_ENDING}){_then('[^A-Za-z]|$')}",
    "([\x92’](?i:[msd]|re|ve|ll))",
    f"({_NOT}){_then('[^A-Za-z]|$')}",
    # words with an apostrophe of their own
    "((?i:d'ye))",
    f"({_APOSTROPHE}[nN]{_APOSTROPHE})",
    f"({_APOSTROPHE}[nN])",
    f"([yY]{_APOSTROPHE})(?={_LETTER})",
    f"([lLdDjJ]{_APOSTROPHE}|[Dd]unkin{_APOSTROPHE}|somethin{_APOSTROPHE}|ol{_APOSTROPHE})",
    f"({_APOSTROPHE}(?i:em|till?|cause))",
    f"({_APOSTROPHE}[2-9]0[sS])",
    f"({_APOSTROPHE}{_DIGIT}{_DIGIT}){_then(_GAP)}",
    f"((?i:c{_APOSTROPHE}(?:mon|est)|nor{_APOSTROPHE}easter|e{_APOSTROPHE}er|ev{_APOSTROPHE}ry|li{_APOSTROPHE}l))",
    f"((?i:nat{_APOSTROPHE}l|cap{_APOSTROPHE}n|s{_APOSTROPHE}mores))",
    f"([A-HJ-XZn]{_TICK}{_LETTER}{{2,}})",
    f"({_LETTER}+[aeiouyAEIOUY]{_TICK}[aeiouA-Z]{_LETTER}*)",
    # addresses
    f"((?i:https?)://{_IN_URL}+{_URL_END})",
    rf"((?i:www)\.(?:[^ \t\n\f\r\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}(?:/{_IN_URL}+{_URL_END})?)",
    # the original's host has no capitals and digits, by a range from comma to underscore that was not meant
    rf"((?:[^ \t\n\f\r\"`'<>|!(){{}},-_$]+\.)+(?:com|net|org|edu)(?:/{_IN_URL}+{_URL_END})?)",
    rf"((?:<|&lt;)?[a-zA-Z0-9]{_IN_MAIL}*@(?:{_IN_MAIL_PART}+\.)*{_IN_MAIL_PART}+(?:>|&gt;)?)",
    f"(@[a-zA-Z_][a-zA-Z_0-9]*|#{_LETTER}+)",
    # numbers
    f"({_DIGIT}{{1,2}}[-/]{_DIGIT}{{1,2}}[-/]{_DIGIT}{{2,4}})",
    f"([-+]?{_NUMBER})",
    "([\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+))",
    rf"((?:{_DIGIT}{{1,4}}[- \u00a0])?{_DIGIT}{{1,4}}(?:\\?/|\u2044){_DIGIT}{{1,4}})",
    "([\u00bc\u00bd\u00be\u2153-\u215e])",
    r"([A-Z]*\$|#)",
    r"(\([0-9]{2,3}\)[ \u00a0]?[0-9]{3,4}[- \u00a0]?[0-9]{3,5})",
    r"((?:(?:\+\+?)?[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0][0-9]{3,4}[- \u00a0]?[0-9]{3,5})",
    r"((?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5})",
    # abbreviations
    rf"((?i:{_any(_BEFORE_NAMES)})\.)",
    rf"((?i:{_any(_ABBREVIATIONS)})\.){_then('(?s:..|.)')}",
    rf"((?:{_any(_STATES)}|{_any(_STATES.upper())})\.){_then('(?s:..|.)')}",
    rf"((?i:{_any(_NUMBERED)})\.){_then(f'{_BLANK}?{_DIGIT}')}",
    rf"((?i:Ed|Ph)\.[dD]\.){_then('(?s:..|.)')}",
    r"([A-Za-z](?:\.[A-Za-z])*\.)",
    rf"([A-Za-z]){_then(rf'[.]{_GAP}+{_any(_STARTERS)}{_GAP}')}",
    r"((?:Canada|Sino|Korean|EU|Japan|non)-U\.S\.|U\.S\.-(?:U\.K|U\.S\.S\.R)\.)",
    rf"((?:{_WORD}|{_PART}(?:[-_]{_PART})*|{_LETTERS_BY_AND})\.){_then('[,;:、]')}",
    rf"({_WORD_CHARACTER}+(?:\.{_WORD_CHARACTER}+)*\.(?i:{_any(_EXTENSIONS)})){_then(f'{_GAP}|[.?!,]')}",
    # words with other signs
    r"((?i:-[RL][RCS]B-|C\.D\.s|pro-|anti-)|S(?:&|&amp;)P-500|S(?:&|&amp;)Ls)",
    r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})",
    f"({_PART}(?:[-_]{_PART})*)",
    f"({_LETTERS_BY_AND})",
    rf"([A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{_INITIALS}\.|[A-Za-z0-9\u00ad]+))+)",
    r"((?i:c\+\+|[cf]\#))",
    # faces
    rf"([<>]?[:;=][-o*']?[()DPdpO\\{{@|\[\]]){_then('[^A-Za-z0-9]|$')}",
    r"([-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\))",
    # punctuation
    r"(\.{3,5}|(?:\.[ \u00a0]){2,4}\.|\u2026)",
    f"(''|'|{_QUOTE}{{1,2}})",
    f"('){_then('[A-Za-z][^ ' + chr(10) + ']')}",  # an opening quote
    '("|(?i:&quot;))',
    "(-+|[\x96\x97\u2013-\u2015])",
    "([!?]+|_+|@+|[*]+|#+)",
    rf"((?i:&lt;|&gt;)|<<|>>|[][<>(){{}}$%&*+,./:;=\\^|~¢£¤¥\x80₠€{ranges(SIGNS)}])",
)
_PATTERNS = [re.compile(rule) for rule in _RULES]
_WRITTEN = {
    **{
        "(": "-lrb-",
        ")": "-rrb-",
        "[": "-lsb-",
        "]": "-rsb-",
        "{": "-lcb-",
        "}": "-rcb-",
        "&lt;": "<",
        "&gt;": ">",
        "&amp;": "&",
    },
    **{"¢": "cents", "£": "#", "¤": "$", "\x80": "$", "₠": "$", "€": "$", '"': "''", "&quot;": "''"},
    **{"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
}
_LIKE_QUOTES = str.maketrans(
    {**dict.fromkeys("‘‛\x91‹", "`"), **dict.fromkeys("’\x92›", "'"), **dict.fromkeys("“\x93«", "``")}
    | dict.fromkeys("”\x94»", "''")
)
_ALL_QUOTES, _ALL_DASHES, _ALL_DOTS = (
    re.compile(p) for p in (f"{_QUOTE}+", "-{2,4}|[\x96\x97\u2013-\u2015]", r"(?:\.[ \u00a0]?){3,}|…")
)
_IS_ENDING = re.compile(f"{_ENDING}|{_NOT}")
_PLAIN = re.compile("[A-Za-z]+(?= )")  # most of a caption: no rule reads further than such a word


# A word with ordinary punctuation: nothing before or after it changes its tokens.
STANDS_ALONE = re.compile(
    rf"""["'(]?(?!(?:.*')?(?i:{_any(_NUMBERED)})\.)[A-Za-z][A-Za-z'-]*[A-Za-z][.,;:!?]?["')]?|[aA]"""
)
_CHUNK = re.compile(r"\S+")
_REACHES_FAR = re.compile("<|\\.[ \u00a0]\\.")  # markup and spaced dots go across words that stand alone
_INITIAL_ENDS = re.compile(r".*[A-Za-z]\.", re.DOTALL)


def tokenize_all(texts: Sequence[str]) -> list[str]:
    """Every caption's tokens, joined by one space."""
    return [" ".join(tokenize(text)) for text in texts]


def tokenize(text: str) -> list[str]:
    """A caption's tokens, without the punctuation that the COCO evaluation drops.

    Words that stand alone and what is between them are looked up, if they were read before: captions repeat themselves.
    """
    if _REACHES_FAR.search(text):
        return list(read(text))
    found: list[str] = []
    begin = end = -1  # of the chunks that may depend on one another
    for chunk in _CHUNK.finditer(text):
        alone = STANDS_ALONE.fullmatch(chunk[0]) is not None
        if begin < 0 and alone:
            found += _tokens_of(chunk[0])
        elif begin < 0:
            begin, end = chunk.span()
        elif alone and not _INITIAL_ENDS.fullmatch(text, begin, end):
            found += _tokens_of(text[begin:end])
            found += _tokens_of(chunk[0])
            begin = -1
        else:
            end = chunk.end()
    if begin >= 0:
        found += _tokens_of(text[begin:end])
    return found


def forget() -> None:
    """Forget the words read so far, for timings."""
    _tokens_of.cache_clear()


@lru_cache(maxsize=1 << 16)
def _tokens_of(chunk: str) -> tuple[str, ...]:
    return tuple(read(chunk))


def read(text: str) -> Iterator[str]:
    """The tokens of a text by the rules alone, place by place."""
    text = text.replace("\n", " ") + "\n"  # a caption is followed by another line
    place = 0
    while place < len(text) - 1:
        plain = _PLAIN.match(text, place)
        if plain and plain[0].lower() not in _SPLIT:
            yield plain[0].lower()
            place = plain.end()
            continue
        match = _furthest(text, place)
        if match is None:  # blanks, and characters of no class
            place += 1
            continue
        written = (_written(token) for token in match.groups()[: match.re.groups - len(match.re.groupindex)])
        yield from (token for token in written if token and token not in DROPPED)
        place = match.end()


def _furthest(text: str, place: int) -> re.Match[str] | None:
    """What the rule that reads furthest from this place finds; what must follow a token counts."""
    furthest, best = 0, None
    for pattern in _PATTERNS:
        match = pattern.match(text, place)
        if match is not None:
            reach = max(match.end(), match.end("then")) if "then" in pattern.groupindex else match.end()
            if reach > furthest:
                furthest, best = reach, match
    return best


def _written(token: str) -> str:
    """The token as it stands in the result: one kind of quotes and dashes, brackets by name, lower case."""
    if (named := _WRITTEN.get(token.lower())) is not None:
        return named
    if _ALL_QUOTES.fullmatch(token):
        return token.translate(_LIKE_QUOTES)
    if _ALL_DASHES.fullmatch(token):
        return "--"
    if _ALL_DOTS.fullmatch(token):
        return "..."
    if _IS_ENDING.fullmatch(token):
        token = token.replace("&apos;", "'").translate(_LIKE_QUOTES)
    token = token.replace("\xad", "").replace("&amp;", "&").replace("(", "-lrb-").replace(")", "-rrb-")
    return token.replace(" ", "\u00a0").lower()  # a space within a token, as in "2 1/2", is a no-break space there
