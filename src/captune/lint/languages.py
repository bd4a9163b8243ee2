"""Which language a caption is in: by its script, and in Latin letters by the words that captions are made of."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping

from captune.rules.phrases import words

APART = 2  # so many more words of another language than of the usual one

# Small words, and what captions name most; words that stand in several languages count for each.
_LANGUAGES = {
    "English": "the a an of with in on and is at to its his her under near by from behind beside against wearing holding "
    "standing sitting walking looking lying background sky night day outdoors indoors photo dog woman man",
    "German": "der die das ein eine einen einem einer eines und mit auf im ist dem den des von vor am zum bei neben unter über "
    "trägt sitzt steht liegt sitzend stehend liegend hund katze frau mann haus wiese himmel blauer blau rot weiß schwarz grün "
    "hintergrund wüste straße fußspuren nacht",
    "French": "le la les l un une des du et avec dans sur sous est au aux devant derrière à côté près qui en noir blanc rouge "
    "chien chat femme homme assis assise debout fond ciel rue",
    "Spanish": "el la los las un una y con en de del al sobre es junto bajo que lleva sentado sentada perro gato mujer hombre "
    "fondo cielo calle noche blanco negro rojo",
    "Italian": "il lo la gli le un una uno con su sul sulla nel nella del della di e è che accanto sotto davanti al alla "
    "seduto seduta cane gatto donna uomo cielo sfondo strada notte bianco nero rosso grigio divano",
    "Portuguese": "um uma o os as com em no na nos nas do da dos das ao de e é que sobre perto lado cachorro gato mulher homem "
    "céu fundo rua noite branco preto vermelho",
    "Dutch": "de het een en met op in van voor naar naast onder aan is zit staat ligt hond kat vrouw man achtergrond lucht "
    "straat rode witte zwarte grijze",
    "Polish": "w na z ze i pod obok przy przed nad za się jest leży siedzi stoi śpi pies kot kobieta mężczyzna tle tło niebo "
    "ulica ulicy noc czarny biały czerwony szarej",
    "Czech": "v na s se a pod vedle u před je leží sedí stojí spí pes kočka žena muž pozadí obloha ulice noc",
    "Swedish": "en ett och med på i av vid under bredvid den det som är sitter står ligger sover hund katt kvinna man himmel "
    "bakgrund gata natt vit svart röd grå",
    "Danish": "en et og med på i af ved under den det som er sidder står ligger sover hund kat kvinde mand himmel baggrund "
    "gade nat hvid sort rød grå",
    "Turkish": "bir ve ile üzerinde altında yanında için bu köpek kedi kadın adam gökyüzü gece arka planda oturuyor duruyor "
    "uyuyor koşuyor gri kanepede siyah beyaz kırmızı",
    "Indonesian": "di yang dan dengan pada dari seekor seorang sebuah duduk berdiri berlari tidur anjing kucing wanita pria "
    "langit latar belakang malam hitam putih merah",
}
_MARKS = {name: frozenset(text.split()) for name, text in _LANGUAGES.items()}
_SCRIPTS = {"CJK": "Chinese or Japanese", "HIRAGANA": "Chinese or Japanese", "KATAKANA": "Chinese or Japanese"}
_LATIN = "Latin"


def others(texts: Mapping[str, str], own: frozenset[str] = frozenset()) -> tuple[str, dict[str, str]]:
    """The language or script of most texts, and that of each which is in another. `own` are words of no language."""
    told = {name: [w.lower() for w in words(text) if w.lower() not in own] for name, text in texts.items()}
    scripts = {name: _script(text) for name, text in told.items()}
    usual = _most(Counter(scripts.values()))
    tongues = Counter(_language(text) for text in told.values())
    spoken = _most(tongues) if usual == _LATIN else ""
    found = {}
    for name, text in told.items():
        tongue = _language(text)
        if scripts[name] and scripts[name] != usual:
            found[name] = tongue if scripts[name] == _LATIN and tongue else scripts[name]
        elif spoken and tongue and _said(text, tongue) >= _said(text, spoken) + APART:
            found[name] = tongue
    return spoken or usual, found


def _script(said: list[str]) -> str:
    """The script of most words; where one word is not told from the next, every letter counts as one."""
    counts: Counter[str] = Counter()
    for word in said:
        for letter in word:
            if letter.isalpha():
                script = unicodedata.name(letter, "").split(" ")[0]
                counts[_SCRIPTS.get(script, script.capitalize())] += len(word) if script in _SCRIPTS else 1
                break
    return _most(counts)


def _most(counts: Counter[str]) -> str:
    named = [(name, count) for name, count in counts.most_common() if name]
    return named[0][0] if named else ""


def _said(text: list[str], language: str) -> int:
    return len(_MARKS[language] & set(text))


def _language(text: list[str]) -> str:
    """The language that the text has most words of; "" if fewer than two."""
    best = max(_MARKS, key=lambda name: _said(text, name))
    return best if _said(text, best) >= APART else ""
