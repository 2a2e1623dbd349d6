"""The table of measured comparisons in README.md and README.zh-CN.md, between the lines `<!-- bench:begin -->` and `<!-- bench:end -->`.

Every number in it comes from bench/results/latest.json; ROWS is the one place that says what it shows. A comparison of which there is no
result is left out, and so is a row that has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.all_bars import bound_text, number, value_text
from bench.all_page import machine_text
from bench.all_results import Result
from bench.harness import ROOT, Figure
from leptonstore.process.charts import as_ratio

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
FILES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh-CN.md"}
DIGITS = 3  # more are noise


@dataclass(frozen=True)
class Beside:
    """One peer of a row. peer: what a reader calls it. figure: ours, which has the peer's value; or other: that is the peer's."""

    peer: str
    figure: str
    other: str = ""
    zh: str = ""  # the peer, where its name is no proper one


@dataclass(frozen=True)
class Row:
    """What is compared, in English and in Chinese; the benchmark; the peers."""

    bench: str
    en: str
    zh: str
    beside: tuple[Beside, ...]


ROWS = (
    Row(
        "ingest",
        "import of 10,000 files, 1.1 GB",
        "导入 1 万个文件（1.1 GB）",
        (Beside("restic", "import"), Beside("borg", "import", "borg_import")),
    ),
    Row(
        "ingest",
        "new bytes after an edit of 1 % of the files",
        "修改 1 % 的文件后新增的字节",
        (Beside("restic", "edited_bytes"), Beside("borg", "edited_bytes", "borg_edited_bytes")),
    ),
    Row(
        "ingest",
        "export of the tree",
        "导出整个目录树",
        (Beside("restic", "export"), Beside("borg", "export", "borg_export")),
    ),
    Row(
        "tiers",
        "1 GB of JPEGs from S3, every value checked",
        "从 S3 读取 1 GB JPEG，逐值校验",
        (Beside("obstore, raw", "object_read", zh="obstore（裸读）"), Beside("s3fs", "object_read_s3fs")),
    ),
    Row(
        "loader",
        "MNIST, shuffled epochs, batch 256",
        "MNIST，打乱的轮次，批大小 256",
        (
            Beside("torch DataLoader, in memory", "mnist vs torch", zh="torch DataLoader（内存）"),
            Beside("mosaicml-streaming", "mnist vs mosaicml"),
            Beside("litdata", "mnist vs litdata"),
            Beside("WebDataset", "mnist vs webdataset"),
            Beside("HF datasets", "mnist vs huggingface"),
            Beside("Lance", "mnist vs lance"),
            Beside("Grain", "mnist vs grain"),
        ),
    ),
    Row(
        "loader",
        "JPEG, RandomResizedCrop(224)",
        "JPEG，RandomResizedCrop(224)",
        (Beside("ImageFolder + Pillow, 2 workers", "jpeg_default", zh="ImageFolder + Pillow，2 个进程"),),
    ),
    Row(
        "loader",
        "windows of 2,049 tokens out of 500 million",
        "从 5 亿 token 中随机取 2,049 长的窗口",
        (Beside("numpy memmap", "tokens"), Beside("mosaicml-streaming", "tokens vs mosaicml")),
    ),
    Row(
        "loader",
        "a cold epoch from S3, values of 50 KB",
        "从 S3 冷读一轮，每值 50 KB",
        (Beside("mosaicml-streaming", "remote vs mosaicml"), Beside("litdata", "remote vs litdata")),
    ),
    Row(
        "dataset",
        "a whole table of 1,000,000 rows",
        "读取 100 万行的整张表",
        (Beside("pyarrow, Parquet", "to_arrow", zh="pyarrow（Parquet）"),),
    ),
    Row(
        "train",
        "MNIST to 98.37 % accuracy",
        "MNIST 训练到 98.37 % 准确率",
        (Beside("Keras", "time to 98.37% vs keras"),),
    ),
    Row(
        "train",
        "the same recipe, two epochs",
        "相同配方，两轮",
        (
            Beside("Keras", "equal recipe vs keras"),
            Beside("bare torch loop", "equal recipe vs torch", zh="裸 torch 循环"),
        ),
    ),
    Row(
        "checkpoint",
        "checkpoint of 510 MB, saved and durable",
        "510 MB 检查点，同步保存并落盘",
        (Beside("torch.distributed.checkpoint", "sync_save"),),
    ),
    Row(
        "checkpoint",
        "an asynchronous save blocks training for",
        "异步保存阻塞训练的时间",
        (Beside("torch.save", "async_blocks"),),
    ),
    Row(
        "process",
        "near duplicates of 200,000 texts",
        "20 万条文本的近似重复",
        (Beside("datasketch", "texts"),),
    ),
    Row(
        "process",
        "statistics of 5,000,000 rows x 10 columns",
        "500 万行 × 10 列的统计",
        (Beside("DuckDB, from Parquet", "statistics cold", zh="DuckDB（Parquet）"),),
    ),
    Row(
        "daemon",
        "rows through the daemon",
        "经由守护进程读取行",
        (Beside("bare Arrow Flight", "bulk", zh="裸 Arrow Flight"),),
    ),
    Row(
        "daemon",
        "JPEG epochs through the daemon",
        "经由守护进程的 JPEG 轮次",
        (Beside("the same store, local", "jpeg", zh="本地的同一存储"),),
    ),
    Row(
        "daemon",
        "bytes that four daemons and loaders take from a bucket for an epoch each",
        "四个守护进程与加载器各读一轮，从存储桶取走的字节",
        (Beside("the data, once", "cluster bucket bytes", zh="数据本身一次"),),
    ),
)

WORDS = {
    "en": {
        "head": "| | LeptonStore | beside (ratio: LeptonStore's figure / theirs) | measured |",
        "short": "**short**: wanted {bound}",
        "behind": "they are better",
        "machine": "Machine: {machine}. Each pair was measured in one run",
        "dirty": "a commit with + had local changes",
        "end": ".",
        "between": "; ",
    },
    "zh": {
        "head": "| | LeptonStore | 对比（比值 = LeptonStore 的数值 / 对方的数值） | 测量 |",
        "short": "**未达标**：目标 {bound}",
        "behind": "对方更好",
        "machine": "机器：{machine}。每一对都在同一次运行中测得",
        "dirty": "带 + 的提交含有本地改动",
        "end": "。",
        "between": "；",
    },
}


def table(results: Sequence[Result], language: str = "en") -> str:
    """The Markdown between the marks. Whole runs only: a small one proves nothing."""
    words = WORDS[language]
    found = [result for result in results if not result.quick]
    lines, used = [words["head"], "| --- | --- | --- | --- |"], []
    for row in ROWS:
        peers, ours, run = [], None, None
        for beside in row.beside:
            figure, of = _figure(found, row.bench, beside)
            if figure is None or of is None:
                continue
            peers.append(_peer(figure, (beside.zh if language == "zh" else "") or beside.peer, words))
            ours, run = ours or figure, run or of
            used += [of] if of not in used else []
        if ours is not None and run is not None:
            title = row.zh if language == "zh" else row.en
            value = value_text(ours.value, ours.unit, DIGITS)
            lines.append(f"| {title} | {value} | {words['between'].join(peers)} | {run.date}, `{_commit(run)}` |")
    machines = list(dict.fromkeys(machine_text(result.machine) for result in used))
    said = [words["machine"].format(machine=" / ".join(machines))]
    said += [words["dirty"]] if any(result.commit.endswith("+") for result in used) else []
    return "\n".join([*lines, "", words["between"].join(said) + words["end"]])


def missing(results: Sequence[Result]) -> list[str]:
    """What ROWS asks for and no whole run has: "bench: figure"."""
    found = [result for result in results if not result.quick]
    return [
        f"{row.bench}: {beside.figure}"
        for row in ROWS
        for beside in row.beside
        if _figure(found, row.bench, beside)[0] is None
    ]


def write_tables(results: Sequence[Result]) -> list[Path]:
    """Into each README that there is; which they are. Raises ValueError when one has no marks."""
    written = []
    for language, file in FILES.items():
        if file.exists():
            file.write_text(replaced(file.read_text("utf-8"), table(results, language), file.name), "utf-8")
            written.append(file)
    return written


def between_marks(text: str, name: str = "the text") -> str:
    """What stands between the marks now. Raises ValueError when they are not there, once each, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{name} needs the lines {BEGIN} and {END}, once each")
    return text.split(BEGIN)[1].split(END)[0].strip("\n")


def replaced(text: str, made: str, name: str = "the text") -> str:
    """`text` with `made` between its marks. Raises as `between_marks` does."""
    between_marks(text, name)
    return f"{text.split(BEGIN)[0]}{BEGIN}\n{made}\n{END}{text.split(END)[1]}"


def _figure(results: Sequence[Result], bench: str, beside: Beside) -> tuple[Figure | None, Result | None]:
    """The newest figure with its peer, and its run."""
    for result in sorted(results, key=lambda one: one.date, reverse=True):
        figures = {figure.name: figure for figure in result.figures} if result.bench == bench else {}
        ours = figures.get(beside.figure)
        if beside.other and ours and beside.other in figures:
            return Figure(ours.name, ours.value, ours.unit, "", beside.peer, figures[beside.other].value), result
        if not beside.other and ours and ours.ratio is not None:
            return ours, result
    return None, None


def _peer(figure: Figure, peer: str, words: dict[str, str]) -> str:
    """ "restic 166: 2.27×", and what is wrong with it."""
    text = f"{peer} {number(figure.peer_value or 0.0, DIGITS)}: {as_ratio(figure.ratio or 0.0)}"
    if figure.holds is False:
        return f"{text} ({words['short'].format(bound=bound_text(figure.bound))})"
    return f"{text} ({words['behind']})" if figure.advantage is not None and figure.advantage < 1 else text


def _commit(result: Result) -> str:
    return result.commit[:7] + ("+" if result.commit.endswith("+") else "")
