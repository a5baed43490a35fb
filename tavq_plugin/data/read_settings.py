"""Settings of the readers: which fields hold ids and texts, and the sizes up to which files are read."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIB = 2**20


@dataclass(frozen=True)
class ReadSettings:
    """How records are read. A part that exceeds a limit is rejected before it is read into memory."""

    text_field: str | None = None  #: name of the field with the text. Default: those of `TEXT_FIELDS`
    id_field: str | None = None  #: name of the field with the id. Default: "id", else the image's file name
    largest_text: int = 16 * MIB  #: bytes of one row, one text or one JSON object
    largest_image: int = 256 * MIB  #: bytes of one encoded image in an archive, and of the images of one row
    largest_json: int = 2048 * MIB  #: bytes of one JSON array, which is read whole

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("largest") and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{field.name} must be a number of bytes of at least 1, got {value!r}")
            if field.name.endswith("field") and value == "":
                raise ValueError(f"{field.name} is empty: give the name of a field, or leave it out")

    def fields_named(self) -> dict[str, str]:
        """The fields that were asked for by name, as a run's settings keep them.

        >>> ReadSettings(text_field="description").fields_named()
        {'text_field': 'description'}
        """
        named = {"text_field": self.text_field, "id_field": self.id_field}
        return {name: value for name, value in named.items() if value is not None}

    def excess(self, size: int, limit: str) -> str | None:
        """Why a part of this many bytes is not read, and the mend; None if it is read.

        >>> ReadSettings(largest_text=10).excess(11, "largest_text")
        'it has 11 bytes or more, above the limit largest_text=10; shorten it, or raise the limit'
        """
        most = getattr(self, limit)
        if size <= most:
            return None
        return f"it has {size:,} bytes or more, above the limit {limit}={most:,}; shorten it, or raise the limit"
