"""The table of formats in docs/data.md: each of its lines reads the file that its row shows."""

import bz2
import gzip
import io
import json
import lzma
import re
import shlex
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from recray.cli import cli

DOCS = Path(__file__).parents[1] / "docs" / "data.md"
LINES = re.findall(r"`recray (data describe [^`]*)` \|$", DOCS.read_text(), re.MULTILINE)

# Four ratings, by three users of three items; what every file holds unless it says otherwise.
RATINGS = [(1, "a1", 4), (1, "b2", 5), (2, "a1", 2), (3, "c3", 1)]
LEVELS = [[1.0, 1], [2.0, 1], [4.0, 1], [5.0, 1]]


def text(*lines, end="\n"):
    return "".join(f"{line}{end}" for line in lines)


def joined(delimiter, header="user,item,rating", row="{},{},{}"):
    rows = [row.format(*rating) for rating in RATINGS]
    return text(*(line.replace(",", delimiter) for line in [header, *rows] if line))


def objects(user="user", item="item", rating="rating"):
    return [{user: u, item: i, rating: r} for u, i, r in RATINGS]


CSV = joined(",").encode()
TABLE = pa.Table.from_pylist(objects())
NESTED = [{"reviewer": {"id": u}, "asin": i, "overall": r} for u, i, r in RATINGS]


def packed_by(codec):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(CSV)
    return sink.getvalue().to_pybytes()


def in_zip():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("data/plays.csv", CSV)
    return out.getvalue()


def written(write):
    sink = io.BytesIO()
    write(TABLE, sink)
    return sink.getvalue()


FILES = {
    "plays.csv": CSV,
    "plays.tsv": joined("\t"),
    "plays-semicolon.csv": joined(";", row="{},{},{}.0").replace(".0", ",0"),
    "plays-bars.txt": joined("|"),
    "plays-blanks.txt": joined(" ", "", "{},{},{},978300760"),
    "ratings.dat": text(*(f"{u}::1{ord(i[0])}::{r}::978300760" for u, i, r in RATINGS)),
    "quoted.csv": text("user,item,review,rating")
    + text(*(f'{u},"{i}, ""x""","two\nlines",{r}' for u, i, r in RATINGS)),
    "own.csv": joined(",", "customer,sku,stars"),
    "books.csv": text('"User-ID";"ISBN";"Book-Rating"')
    + text(*(f'"{u}";"{i}";"{r}"' for u, i, r in RATINGS)),
    "plays.inter": joined("\t", "user_id:token,item_id:token,rating:float"),
    "from-r.txt": text('"user" "item" "rating"')
    + text(*(f'"{n}" {u} "{i}" {r}' for n, (u, i, r) in enumerate(RATINGS, 1))),
    "index.csv": text(",user,item,rating")
    + text(*(f"{n},{u},{i},{r}" for n, (u, i, r) in enumerate(RATINGS))),
    "thumbs.csv": text("user,item,rating") + text(*(f"{u},{i},{r > 3}" for u, i, r in RATINGS)),
    "chosen.csv": text("user,item") + text(*(f"{u},{i}" for u, i, _ in RATINGS)),
    "unicode.txt": joined("\t").encode("utf-16"),
    "latin.csv": joined(";", row="{},é{},{}").encode("latin-1"),
    "plays.jsonl": text(*map(json.dumps, objects())),
    "reviews.json.gz": gzip.compress(text(*map(json.dumps, NESTED)).encode()),
    "array.json": json.dumps(objects()),
    "dicts.json": text(*map(str, objects())),
    "plays.csv.gz": gzip.compress(CSV),
    "plays.csv.bz2": bz2.compress(CSV),
    "plays.csv.xz": lzma.compress(CSV),
    "plays.csv.zst": packed_by("zstd"),
    "plays.csv.lz4": packed_by("lz4"),
    "plays.zip": in_zip(),
    "plays.parquet": written(pq.write_table),
    "plays.feather": written(pyarrow.feather.write_feather),
    "plays.orc": written(pyarrow.orc.write_table),
    "folder": {
        "a.csv": text("user,item,rating", "1,a1,4", "1,b2,5"),
        "b/c.jsonl": text(*map(json.dumps, objects()[2:])),
    },
    "spark": {
        "_SUCCESS": b"",
        "part-00000-7e-c000.csv": text("user,item,rating", "1,a1,4", "1,b2,5"),
        "part-00001-7e-c000.csv": b"",
        "part-00002-7e-c000.csv": text("user,item,rating", "2,a1,2", "3,c3,1"),
    },
    "hive": {f"rating={r}/part-0.csv": text("user,item", f"{u},{i}") for u, i, r in RATINGS},
}
LEVELS_OF = {"thumbs.csv": [[0.0, 2], [1.0, 2]], "chosen.csv": [[1.0, 4]]}


def write(path, content):
    if isinstance(content, dict):
        for name, inside in content.items():
            write(path / name, inside)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def test_the_table_and_these_files_are_the_same():
    assert sorted(shlex.split(line)[2] for line in LINES) == sorted(FILES)


@pytest.mark.parametrize("line", LINES, ids=[shlex.split(line)[2] for line in LINES])
def test_the_line_reads_its_file(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(line)
    name = arguments[2]
    write(tmp_path / name, FILES[name])
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["rejected"]["rows"] == 0
    assert (said["ratings"], said["users"], said["items"]) == (4, 3, 3)
    assert said["levels"] == LEVELS_OF.get(name, LEVELS)
