"""Workload texts: near duplicates among 200,000 texts, 20,000 of them planted, beside datasketch on the same texts.

Texts are words by Zipf's law out of 50,000, with stock phrases in them (so that texts of different origin share shingles, as real ones do);
lengths are lognormal, median 80 words, mean 100, from 20 to 2,000. A planted near duplicate is another text with words replaced,
left out, put in and moved, other capitals and punctuation, at a Jaccard similarity of 0.8 or more, spread evenly up to 1. As many as half
of them are hard negatives: made in the same way, but at a similarity of 0.65 to 0.8. Similarities are counted here, by Python's
sets, with code that shares nothing with what is measured.

datasketch  MinHash of 128 permutations and MinHashLSH at 0.8, as its documentation uses them, then exact Jaccard of what that finds.
            Its texts are in memory; ours are read from the store. One thread each, in processes of their own.

Memory is all that is resident, but of the pipeline what is its own: results that it keeps for the next time are files that it maps.

Contract: recall >= 0.95, precision >= 0.95, >= 0.95 of the pairs that datasketch finds, >= 5x its speed, memory <= 1 GB.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather

from bench.harness import Figure, in_process, median, peak_mib
from bench.loader_tokens import Memory
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.schema import text_field
from leptonstore.store import Store

TEXTS, QUICK_TEXTS = 200_000, 4_000
PLANTED, HARD = 0.1, 0.05  # of the texts
THRESHOLD, SIZE = 0.8, 3
VOCABULARY, PHRASES = 50_000, 2_000
RUNS = 3
_WORD = re.compile(r"\w+")


def shingles(text: str) -> set[str]:
    """As a user of datasketch would make them."""
    words = _WORD.findall(text.lower())
    return {" ".join(words[at : at + SIZE]) for at in range(max(1, len(words) - SIZE + 1))}


def jaccard(first: set[str], second: set[str]) -> float:
    """Of two sets."""
    return len(first & second) / len(first | second)


def zipf(rng: np.random.Generator, kinds: int, count: int) -> np.ndarray:
    """Numbers below `kinds`, small ones more often."""
    shares = np.cumsum(1 / (np.arange(kinds) + 2.7))
    return np.searchsorted(shares / shares[-1], rng.random(count))


class Writer:
    """Makes texts."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "ou")]
        lengths = 1 + self.rng.poisson(1.4, VOCABULARY * 2)
        made = ("".join(self.rng.choice(syllables, length)) for length in lengths)
        self.words = np.array(list(dict.fromkeys(made)))[:VOCABULARY]
        self.phrases = [zipf(self.rng, len(self.words), count) for count in self.rng.integers(3, 9, PHRASES)]

    def words_of_text(self) -> list[str]:
        """The words of one text."""
        count = int(np.clip(self.rng.lognormal(np.log(80), 0.7), 20, 2_000))
        numbers = zipf(self.rng, len(self.words), count)
        for phrase in zipf(self.rng, PHRASES, count // 40).tolist():
            at = int(self.rng.integers(0, count))
            numbers[at : at + len(self.phrases[phrase])] = self.phrases[phrase][: count - at]
        return list(self.words[numbers])

    def edited(self, words: list[str], low: float, high: float) -> list[str] | None:
        """The same text with single words changed, until its similarity is in [low, high); None where that did not come out."""
        base, changed = shingles(" ".join(words)), list(words)
        wanted = self.rng.uniform(low, high)
        for _ in range(len(words)):
            before, at, kind = list(changed), int(self.rng.integers(0, len(changed))), self.rng.integers(0, 4)
            if kind == 0:
                changed[at] = str(self.rng.choice(self.words))
            elif kind == 1:
                del changed[at]
            elif kind == 2:
                changed.insert(at, str(self.rng.choice(self.words)))
            else:
                changed.insert(at, changed.pop(int(self.rng.integers(0, len(changed)))))
            similarity = jaccard(base, shingles(" ".join(changed)))
            if similarity < wanted:
                changed = changed if similarity >= low else before
                break
        found = jaccard(base, shingles(" ".join(changed)))
        return changed if low <= found < high and changed != words else None

    def written(self, words: list[str]) -> str:
        """With sentences: capitals and punctuation, which do not count."""
        said, ends = [], self.rng.random(len(words)) < 0.08
        for number, word in enumerate(words):
            first = number == 0 or ends[number - 1]
            said.append((word.capitalize() if first else word) + (". " if ends[number] else " "))
        return "".join(said).strip()


def make(file: Path, count: int) -> dict[str, list[list[int]]]:
    """Texts in random order, in a file. Returns the planted pairs and the hard negatives, by row."""
    writer = Writer(0)
    planted, hard = int(count * PLANTED), int(count * HARD)
    words = [writer.words_of_text() for _ in range(count - planted - hard)]
    pairs: list[tuple[int, int]] = []
    base = 0
    for low, high, until in ((THRESHOLD, 1.0, planted), (0.65, THRESHOLD, planted + hard)):
        while len(pairs) < until:
            if (other := writer.edited(words[base], low, high)) is not None:
                pairs.append((base, len(words)))
                words.append(other)
            base += 1
    place = writer.rng.permutation(count)
    texts = np.empty(count, object)
    texts[place] = [writer.written(one) for one in words]
    feather.write_feather(pa.table({"text": pa.array(texts)}), str(file), "uncompressed")
    rows = [[int(place[first]), int(place[second])] for first, second in pairs]
    return {"planted": rows[:planted], "hard": rows[planted:]}


def store_texts(place: Path, file: Path) -> None:
    """A store with dataset `texts`."""
    table = feather.read_table(str(file))
    schema = pa.schema([pa.field("id", pa.int64(), False), text_field("text")])

    def batches() -> Iterator[pa.RecordBatch]:
        ids = pa.array(np.arange(len(table)))
        yield from pa.table([ids, table["text"]], schema=schema).to_batches(max_chunksize=4_096)

    with Store.create(place) as store:
        write_dataset(store, "texts", Source(schema, ("id",), batches))


def ours(place: str) -> dict[str, Any]:
    """Seconds from opening the dataset to the findings."""
    from leptonstore.process.checks.near_duplicate_texts import NearDuplicateTexts

    began, cpu = time.perf_counter(), time.process_time()
    dataset = Dataset.open(place, "texts")
    check = NearDuplicateTexts(threshold=THRESHOLD, size=SIZE).bound(dataset, dataset.schema)
    reads = list(check.reads(dataset.schema))
    batches = dataset.iter_batches(reads, keep=False)
    features = pa.Table.from_batches([check.measure(batch.select(reads)) for _, batch in batches])
    measured = time.perf_counter()
    findings = check.decide(features).findings
    ended, spent = time.perf_counter(), time.process_time() - cpu
    assert findings is not None
    found = {name: findings[name].to_pylist() for name in ("row", "other", "group")}
    return {
        "seconds": ended - began,
        "cpu_s": spent,
        "decide_s": ended - measured,
        "features_mib": features.nbytes / (1 << 20),
        "peak_mib": peak_mib(),
        **found,
    }


def pipeline(place: str) -> dict[str, Any]:
    """Seconds of a pipeline that writes a version without the near duplicates: the engine's start, two passes, a commit."""
    from leptonstore.process.checks.near_duplicate_texts import NearDuplicateTexts
    from leptonstore.process.pipeline import Pipeline

    with Memory() as memory, Store.open(place) as store:
        began = time.perf_counter()
        check = NearDuplicateTexts(threshold=THRESHOLD, size=SIZE, action="drop")
        result = Pipeline("texts", [check], into="kept").run(store)
        seconds = time.perf_counter() - began
        found, left = len(result.findings), len(result.dataset)
    return {"seconds": seconds, "own_mib": memory.before + memory.peak, "found": found, "left": left}


def datasketch(file: str) -> dict[str, Any]:
    """Seconds from the texts to pairs of them."""
    from datasketch import MinHash, MinHashLSH

    texts = feather.read_table(file)["text"].to_pylist()
    began, cpu = time.perf_counter(), time.process_time()
    sets = [shingles(text) for text in texts]
    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    pairs = []
    hashed = MinHash.generator(([one.encode() for one in each] for each in sets), num_perm=128)
    for row, minhash in enumerate(hashed):
        for other in index.query(minhash):
            if jaccard(sets[row], sets[other]) >= THRESHOLD:
                pairs.append([other, row])
        index.insert(row, minhash)
    took = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    return {**took, "peak_mib": peak_mib(), "pairs": pairs}


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The figures."""
    count = QUICK_TEXTS if arguments.quick else TEXTS
    with tempfile.TemporaryDirectory() as folder:
        file, place = Path(folder) / "texts.feather", Path(folder) / "store"
        truth = make(file, count)
        store_texts(place, file)
        runs = [in_process("bench.process_texts", "ours", str(place)) for _ in range(1 if arguments.quick else RUNS)]
        peer = in_process("bench.process_texts", "datasketch", str(file))
        whole = in_process("bench.process_texts", "pipeline", str(place))
    found = runs[0]
    assert whole["found"] == len(found["row"]) == count - whole["left"], "the pipeline found something else"
    pairs = {frozenset(pair) for pair in zip(found["row"], found["other"], strict=True)}
    planted = {frozenset(pair) for pair in truth["planted"]}
    group = dict(zip(found["row"], found["group"], strict=True))
    together = [pair for pair in peer["pairs"] if group.get(pair[0], pair[0]) == group.get(pair[1], pair[1])]
    hard = sum(frozenset(pair) in pairs for pair in truth["hard"])
    seconds = median(run["seconds"] for run in runs)
    spent = median(run["cpu_s"] for run in runs)
    speed = "" if arguments.quick else ">= 5"
    return [
        Figure("texts", count / seconds, "texts/s", speed, "datasketch", count / peer["seconds"]),
        Figure("texts, processor time", 1e6 * spent / count, "us/text", "", "datasketch", 1e6 * peer["cpu_s"] / count),
        Figure("texts, of it deciding", median(run["decide_s"] for run in runs), "s"),
        Figure("texts, recall", len(pairs & planted) / len(planted), "of planted", ">= 0.95"),
        Figure("texts, precision", len(pairs & planted) / max(1, len(pairs)), "of found", ">= 0.95"),
        Figure("texts, hard negatives", hard / len(truth["hard"]), "of them"),
        Figure("texts, as datasketch", len(together) / max(1, len(peer["pairs"])), "of its pairs", ">= 0.95"),
        Figure("datasketch, recall", sum(set(pair) in planted for pair in peer["pairs"]) / len(planted), "of planted"),
        Figure("texts, memory", max(run["peak_mib"] for run in runs), "MiB", "<= 1024"),
        Figure("texts, pipeline", count / whole["seconds"], "texts/s", "", "datasketch", count / peer["seconds"]),
        Figure("texts, pipeline memory", whole["own_mib"], "MiB, own", "<= 1024"),
        Figure("texts, features", found["features_mib"], "MiB"),
        Figure("datasketch, memory", peer["peak_mib"], "MiB"),
    ]


def main() -> None:
    """What `in_process` runs."""
    print(json.dumps({"ours": ours, "pipeline": pipeline, "datasketch": datasketch}[sys.argv[1]](sys.argv[2])))


if __name__ == "__main__":
    main()
