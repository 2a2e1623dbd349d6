"""check.text_language: texts that are not in one of the languages that are wanted.

py3langid tells the language (a naive Bayes over byte n-grams; Lui and Baldwin, langid.py, 2012); extra `text`. Found is a text whose
language is another one (`score`: how sure that is, 0 to 1), or of which it is less sure than `score_min` (`score`: how unsure). Texts
of fewer than `letters_min` letters are not judged: there is nothing to tell it by.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import Any, ClassVar

import pyarrow as pa

from leptonstore import limits
from leptonstore.errors import BadInput, MissingExtra, listed
from leptonstore.process.checks.check import Found, RowCheck
from leptonstore.process.findings import findings_table
from leptonstore.process.operations.parameters import texts as names_of
from leptonstore.process.texts.column import number_in, text_column, whole_number_in

_LOCK = threading.Lock()
_IDENTIFIERS: list[Any] = []


@dataclass(frozen=True)
class TextLanguage(RowCheck):
    """Texts that are not in one of the languages that are wanted.

    languages:   that are wanted, by their ISO 639-1 codes: "en", "de".
    column:      of texts; None: the only one.
    score_min:   how sure it has to be that a text is in one of them.
    letters_min: of a text that is judged.
    """

    name: ClassVar[str] = "check.text_language"

    languages: Sequence[str] = ("en",)
    column: str | None = None
    score_min: float = 0.5
    letters_min: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "languages", names_of(self.name, "languages", self.languages))
        number_in(self.name, "score_min", self.score_min, 0, 1)
        whole_number_in(self.name, "letters_min", self.letters_min, 1)

    def libraries(self) -> dict[str, str]:
        """The model comes with the library."""
        identifier()
        return {"py3langid": version_of("py3langid")}

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """The texts. Raises BadInput (a language that is not known), MissingExtra."""
        known = identifier().labels
        for language in self.languages:
            if language not in known:
                raise BadInput(f"{self.name}: language {language!r} is not known; there are: {listed(sorted(known))}")
        return (text_column(schema, self.column, self.name),)

    def find(self, batch: pa.RecordBatch) -> Found:
        """At most one finding for each text."""
        model = identifier()
        rows, details, scores = [], [], []
        for row, text in enumerate(batch.column(0).to_pylist()):
            # Of a long text its beginning tells as much.
            text = (text or "")[: limits.TEXT_LANGUAGE_CHARS_MAX]
            if sum(map(str.isalpha, text)) < self.letters_min:
                continue
            language, score = model.classify(text)
            if language not in self.languages:
                rows.append(row)
                details.append(f"language {language}, not {' or '.join(self.languages)}")
                scores.append(score)
            elif score < self.score_min:
                rows.append(row)
                details.append(f"language {language}, of which it is not sure ({score:.2f})")
                scores.append(1 - score)
        return Found(findings_table(self.tag, batch.schema.names[0], rows, details, scores))


def identifier() -> Any:
    """The model, loaded once a process. Its `classify` reads it only: threads may share it. Raises MissingExtra."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise MissingExtra("telling languages", "text", "py3langid") from error
    with _LOCK:
        if not _IDENTIFIERS:
            _IDENTIFIERS.append(LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True))
    return _IDENTIFIERS[0]
