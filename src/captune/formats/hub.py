"""A data set by name as captioned pictures: one picture in memory at a time, its bytes as they come."""

from __future__ import annotations

from collections.abc import Iterator

from captune import named_data
from captune.formats import Row


def read(
    name: str, split: str = "train", config: str = "", image_column: str = "", caption_column: str = ""
) -> Iterator[Row]:
    """The rows of a data set of the hub, or of a folder that the `datasets` library reads; the first of several captions."""
    data = named_data.opened(named_data.Asked(name, config, split, image_column, caption_column, "--{}"))
    for number, row in enumerate(data.rows):
        content, text = named_data.bytes_of(row[data.image]), row[data.caption]
        text = text[0] if isinstance(text, list) and text else text
        if content is not None:
            place = f"{number:06}.{named_data.suffix_of(content)}"
            yield Row(place, text if isinstance(text, str) else None, content=content)
