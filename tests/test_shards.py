"""Shards of a file, answered apart, and joined: the output of one job, byte for byte.

The tests marked `others` run the programs of `notebooks/many-machines.md` on Ray and Spark.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import minibert
from minibert.cli.joining import join_parts
from minibert.cli.lines import Shard, answer_file
from minibert.fast.linear import supported
from minibert.settings import AnswerSettings

JOIN = [sys.executable, "-m", "minibert", "answer", "--join"]


@pytest.fixture(scope="module")
def qa(tiny: Path) -> minibert.QuestionAnswerer:
    return minibert.QuestionAnswerer.from_pretrained(tiny, precision="fp32", device="cpu")


def write_questions(path: Path, count: int) -> Path:
    """Questions of different lengths, with blank lines between some of them."""
    with path.open("w", encoding="utf-8") as file:
        for k in range(count):
            context = f"Ada lit lamp {k}, and Bo rang the bell {'for hours ' * (k % 7)}at dusk."
            row = {"id": k, "question": f"Who lit lamp {k}?", "context": context}
            file.write(json.dumps(row) + "\n" * (1 + (k % 5 == 0)))
    return path


def answer_shards(
    qa: minibert.QuestionAnswerer, source: Path, folder: Path, shards: int
) -> list[Path]:
    paths = [folder / f"{shard}.jsonl" for shard in range(1, shards + 1)]
    for number, path in enumerate(paths, start=1):
        answer_file(qa, source, path, False, AnswerSettings(), Shard(number, shards))
    return paths


def assert_same_answers(whole: bytes, joined: bytes) -> None:
    """Byte for byte, where the fused kernels compute. Others may sum in another order."""
    if supported(torch.float32):
        assert joined == whole
    for line, other in zip(whole.splitlines(), joined.splitlines(), strict=True):
        one, two = json.loads(line), json.loads(other)
        a, b = one.pop("prediction"), two.pop("prediction")
        assert one == two and (a["answer"], a["start"]) == (b["answer"], b["start"])
        assert a["score"] == pytest.approx(b["score"], abs=1e-4)


@pytest.fixture(scope="module")
def parts(qa: minibert.QuestionAnswerer, tmp_path_factory: Any) -> list[Path]:
    """The three parts of 50 questions."""
    folder = tmp_path_factory.mktemp("parts")
    return answer_shards(qa, write_questions(folder / "asked.jsonl", 50), folder, 3)


def test_joined_parts_equal_the_output_of_one_job(qa, parts, tmp_path):
    source, whole = parts[0].with_name("asked.jsonl"), tmp_path / "whole.jsonl"
    answer_file(qa, source, whole, False, AnswerSettings())
    join_parts([parts[2], parts[0], parts[1]], tmp_path / "joined.jsonl")
    assert_same_answers(whole.read_bytes(), (tmp_path / "joined.jsonl").read_bytes())
    assert {path.name for path in tmp_path.iterdir()} == {"whole.jsonl", "joined.jsonl"}
    assert [len(path.read_bytes().splitlines()) for path in parts] == [17, 17, 16]


@pytest.mark.slow
def test_20000_lines_in_7_parts_equal_the_output_of_one_job(qa, tmp_path):
    source, whole = write_questions(tmp_path / "asked.jsonl", 20_000), tmp_path / "whole.jsonl"
    answer_file(qa, source, whole, False, AnswerSettings())
    join_parts(answer_shards(qa, source, tmp_path, 7), tmp_path / "joined.jsonl")
    assert_same_answers(whole.read_bytes(), (tmp_path / "joined.jsonl").read_bytes())


def test_shards_without_a_question(qa, tmp_path):
    source = write_questions(tmp_path / "asked.jsonl", 2)
    paths = answer_shards(qa, source, tmp_path, 4)
    join_parts(paths, tmp_path / "joined.jsonl")
    joined = (tmp_path / "joined.jsonl").read_bytes()
    assert [path.stat().st_size > 0 for path in paths] == [True, True, False, False]
    assert [json.loads(line)["id"] for line in joined.splitlines()] == [0, 1]


def test_a_table_has_shards_too(qa, tmp_path):
    """Its rows are counted, not its lines, because a cell may have several lines."""
    source = tmp_path / "asked.csv"
    rows = "".join(f'{k},Who?,"Ada lit\nlamp {k}."\n' for k in range(5))
    source.write_text(f"id,question,context\n{rows}")
    join_parts(answer_shards(qa, source, tmp_path, 2), tmp_path / "joined.jsonl")
    joined = (tmp_path / "joined.jsonl").read_bytes()
    assert [json.loads(line)["id"] for line in joined.splitlines()] == list("01234")


def test_a_stopped_shard_continues(qa, parts, tmp_path):
    source, path = parts[0].with_name("asked.jsonl"), tmp_path / "2.jsonl"
    lines = parts[1].read_bytes().splitlines(keepends=True)
    about = parts[1].with_name("2.jsonl.partial.json").read_text()
    (tmp_path / "2.jsonl.partial").write_bytes(b"".join(lines[:5]) + lines[5][:9])
    (tmp_path / "2.jsonl.partial.json").write_text(about)
    with pytest.raises(minibert.InputError, match="incomplete: --resume continues"):
        join_parts([parts[0], path, parts[2]], tmp_path / "joined.jsonl")
    with pytest.raises(minibert.InputError, match="shard was 2, is 3"):
        answer_file(qa, source, path, True, AnswerSettings(), Shard(3, 3))
    with pytest.raises(minibert.InputError, match="input was"):
        other = write_questions(tmp_path / "other.jsonl", 49)
        answer_file(qa, other, path, True, AnswerSettings(), Shard(2, 3))
    answer_file(qa, source, path, True, AnswerSettings(), Shard(2, 3))
    assert_same_answers(parts[1].read_bytes(), path.read_bytes())
    assert (tmp_path / "2.jsonl.partial.json").read_text() == about


@pytest.mark.parametrize("line", ["{", '{"question": "Who?", "context": " "}'])
def test_a_bad_line_stops_every_shard_before_its_work(qa, tmp_path, line):
    """Its number is that in the whole file."""
    source = write_questions(tmp_path / "asked.jsonl", 5)
    with source.open("a") as file:
        file.write(line + "\n")
    for number in (1, 2):
        with pytest.raises(minibert.InputError, match=r"asked\.jsonl: line 7: "):
            path = tmp_path / "part.jsonl"
            answer_file(qa, source, path, False, AnswerSettings(), Shard(number, 2))
    assert list(tmp_path.iterdir()) == [source]


def test_standard_input_has_no_shards(qa, tmp_path):
    with pytest.raises(minibert.InputError, match="-: --shard reads its input twice: give a file"):
        answer_file(qa, Path("-"), tmp_path / "part", False, AnswerSettings(), Shard(1, 2))


@pytest.mark.parametrize("text", ["3", "0/3", "4/3", "1/0", "-1/3", "1/2/3", "a/b", " 1/3", "1/³"])
def test_a_shard_that_is_none(text):
    with pytest.raises(minibert.InputError, match="expected K/N with K from 1 to N"):
        Shard.parsed(text)


def edit(about: Path, **changes: Any) -> None:
    about.write_text(json.dumps(json.loads(about.read_text()) | changes))


# What is wrong with the parts, how they become so, and the message.
WRONG: dict[str, tuple[Callable[[list[Path]], object], str]] = {
    "missing": (lambda paths: paths.pop(1), "missing: shard 2/3"),
    "most are missing": (lambda paths: paths.__delitem__(slice(1, 3)), "2/3 and 1 others"),
    "doubled": (lambda paths: paths.append(paths[0]), "1.jsonl: both are shard 1/3"),
    "no such file": (lambda paths: paths.append(Path("9.jsonl")), "9.jsonl: no such file"),
    "no description": (
        lambda paths: paths[1].with_name("2.jsonl.partial.json").unlink(),
        "2.jsonl: not a part that --shard wrote: 2.jsonl.partial.json is missing",
    ),
    "a description of something else": (
        lambda paths: paths[1].with_name("2.jsonl.partial.json").write_text("[1]"),
        "2.jsonl.partial.json: not about a part that --shard wrote",
    ),
    "another input": (
        lambda paths: edit(paths[1].with_name("2.jsonl.partial.json"), input="0"),
        "2.jsonl: not a part of the same job as ",
    ),
    "another model": (
        lambda paths: edit(paths[1].with_name("2.jsonl.partial.json"), model="0"),
        "model was ",
    ),
    "another precision": (
        lambda paths: edit(paths[1].with_name("2.jsonl.partial.json"), precision="int8"),
        "precision was 'fp32', is 'int8'",
    ),
    "another number of shards": (
        lambda paths: edit(paths[1].with_name("2.jsonl.partial.json"), shards=4),
        "shards was 3, is 4",
    ),
    "half a line": (
        lambda paths: paths[1].write_bytes(paths[1].read_bytes()[:-9]),
        "2.jsonl: incomplete",
    ),
    "the last line is missing": (
        lambda paths: paths[2].write_bytes(b"".join(lines_of(paths[2])[:-1])),
        "3.jsonl: incomplete",
    ),
    "a line too many": (
        lambda paths: paths[2].write_bytes(b"".join(lines_of(paths[2])) + b"{}\n"),
        "3.jsonl: more lines than its shard has",
    ),
}


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parts_are_refused(parts, tmp_path, name):
    """And nothing is written."""
    paths = []
    for part in parts:
        for file in (part, part.with_name(f"{part.name}.partial.json")):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        paths.append(tmp_path / part.name)
    change, message = WRONG[name]
    change(paths)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(minibert.InputError) as error:
        join_parts(paths, tmp_path / "joined.jsonl")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_joining_takes_little_memory(tmp_path):
    """Not more for 20 MB than the buffers of the files."""
    about = {"shards": 4, "questions": 20_000}
    paths = [tmp_path / f"{k}.jsonl" for k in range(4)]
    for k, path in enumerate(paths):
        path.write_bytes((b"x" * 1000 + b"\n") * 5000)
        (tmp_path / f"{k}.jsonl.partial.json").write_text(json.dumps(about | {"shard": k + 1}))
    tracemalloc.start()
    join_parts(paths, tmp_path / "joined.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "joined.jsonl").stat().st_size == 20_020_000 and peak < 2e6


def test_join_overwrites_nothing(parts, tmp_path):
    output = tmp_path / "joined.jsonl"
    output.write_text("another's")
    with pytest.raises(minibert.InputError, match="exists already"):
        join_parts(parts, output)
    assert output.read_text() == "another's"


def test_the_command_joins_the_files_of_a_pattern(parts, tmp_path):
    """In a new folder, and with one line for an error."""
    output = tmp_path / "new" / "joined.jsonl"
    command = [*JOIN, *map(str, parts), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    ids = [json.loads(line)["id"] for line in output.read_bytes().splitlines()]
    assert ids == list(range(50))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {output}: exists already")


# --- Ray and Spark: the programs of the page, each with one worker process that is killed

PAGE = Path(__file__).parent.parent / "notebooks" / "many-machines.md"
PAIRS = int(os.environ.get("MINIBERT_PAIRS", "200"))
# The first worker process that comes here takes the file away and dies.
DIES_ONCE = """
import os
import signal
from pathlib import Path


def die_once():
    token = Path(os.environ["MINIBERT_TOKEN_FILE"])
    if token.exists():
        token.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


"""
DYING = {
    "ray_answers.py": """
class Answers(Answers):
    def __call__(self, rows):
        die_once()
        return super().__call__(rows)


""",
    "spark_answers.py": """
answer = answer_frames


def answer_frames(frames):
    for frame in answer(frames):
        die_once()
        yield frame


""",
}
# The page starts Ray without arguments. A busy machine may need several tries: Ray waits only 30 s.
NO_RAY = 77  # the exit code if Ray itself cannot start
START_RAY = f"""
    for _ in range(8):
        try:
            ray.init(num_cpus=3, include_dashboard=False)
            break
        except Exception:
            ray.shutdown()
    else:
        sys.exit({NO_RAY})
"""


def program_of_the_page(name: str, folder: Path) -> Path:
    """The page's program, with a worker process that dies once."""
    text = PAGE.read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"```py\n(.*?)```", text, re.DOTALL) if name[:3] in c[:99])
    code = code.replace("ROWS = 2000", f"ROWS = {PAIRS // 5}")
    head, main, rest = code.partition('if __name__ == "__main__":\n')
    if name == "ray_answers.py":
        rest = START_RAY + rest
    path = folder / name
    path.write_text(head + DIES_ONCE + DYING[name] + main + rest)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Path:
    """The output of `minibert answer`, next to the file of questions."""
    folder = tmp_path_factory.mktemp("whole")
    source = write_questions(folder / "asked.jsonl", PAIRS)
    began = time.perf_counter()
    command = [*JOIN[:-1], "--input", str(source), "--output", str(folder / "whole.jsonl")]
    options = ["--precision", "fp32", "--device", "cpu"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    print(f"\n{PAIRS} pairs: minibert answer {time.perf_counter() - began:.1f} s")
    return folder / "whole.jsonl"


def run_program(command: list[str], folder: Path) -> None:
    """Run a program in which one worker process is killed."""
    token = folder / "token"
    token.touch()
    environment = os.environ | {
        "MINIBERT_PRECISION": "fp32",
        "MINIBERT_TOKEN_FILE": str(token),
        "PYTHONPATH": str(Path(minibert.__file__).parent.parent),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
    }
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == NO_RAY:
        pytest.skip("Ray does not start on this machine")
    assert done.returncode == 0, done.stderr[-3000:]
    assert not token.exists(), "no worker process was killed"
    print(f"{Path(command[0]).name} {time.perf_counter() - began:.1f} s")


def assert_same_rows(whole: Path, rows: list[dict[str, Any]]) -> None:
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    expected = map(json.loads, whole.read_bytes().splitlines())
    assert_same_answers(b"".join(json.dumps(row).encode() + b"\n" for row in expected), lines)


@pytest.mark.others
def test_ray_gives_the_rows_of_one_job(whole, tmp_path):
    pytest.importorskip("ray", reason="pip install 'ray[data]'")
    import pyarrow.parquet

    program = program_of_the_page("ray_answers.py", tmp_path)
    source, output = whole.with_name("asked.jsonl"), tmp_path / "answers"
    run_program([sys.executable, str(program), str(source), str(output), "2"], tmp_path)
    files = sorted(output.glob("*.parquet"))
    assert len(files) > 1  # several blocks, in order
    rows = [row for path in files for row in pyarrow.parquet.read_table(path).to_pylist()]
    assert_same_rows(whole, rows)


@pytest.mark.others
@pytest.mark.skipif(shutil.which("java") is None, reason="apt-get install openjdk-17-jre-headless")
def test_spark_gives_the_rows_of_one_job(whole, tmp_path):
    pytest.importorskip("pyspark", reason="pip install pyspark")
    program = program_of_the_page("spark_answers.py", tmp_path)
    source, output = whole.with_name("asked.jsonl"), tmp_path / "answers"
    submit = [str(Path(sys.executable).with_name("spark-submit")), "--master"]
    size = source.stat().st_size // 4
    options = ["local-cluster[2,1,1024]", "--conf", f"spark.sql.files.maxPartitionBytes={size}"]
    run_program([*submit, *options, str(program), str(source), str(output)], tmp_path)
    files = sorted(output.glob("part-*.json"))
    assert len(files) > 1  # several partitions, in order
    assert_same_rows(whole, [json.loads(line) for path in files for line in path.open()])
