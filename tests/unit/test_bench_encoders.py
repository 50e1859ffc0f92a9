"""`attune bench encoders`: clips and batches, the rows, their processes and turns, what is made of the figures.

    .venv/bin/pytest tests/unit/test_bench_encoders.py

All models are tiny and random.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from click.testing import CliRunner

from attune_export import int8
from attune_export.bench_encoders import graphs as graphs_module
from attune_export.bench_encoders.batches import Batching, batches, excess, padded
from attune_export.bench_encoders.clip import MAX_SAMPLES, Clip
from attune_export.bench_encoders.clips import cut_clips, labelled_clips, lengths, random_tokens
from attune_export.bench_encoders.command import encoders
from attune_export.bench_encoders.engines import answers, engine_of
from attune_export.bench_encoders.graphs import needed, prepare, read_cut
from attune_export.bench_encoders.rates import Rates
from attune_export.bench_encoders.results import Result, median_rates, operations_of, results
from attune_export.bench_encoders.tables import ccc_table, rate_line, row_table, skipped_list
from attune_export.bench_encoders.towers import Tower, load_models, save_models
from attune_export.bench_encoders.turns import Measurements, Timed, available_bytes, take_turns
from attune_export.bench_encoders.ways import CUT, EAGER, ROWS, WHOLE, chosen, unavailable
from attune_export.bench_encoders.worker import Answered, RowFailed, Worker
from attune_export.regressor import REGRESSORS
from tests.fake_jobs import FailsAt, FailsToStart, Meter, Sleeper

TINY = Tower("tiny", random_weights=True)
TOKENS = random_tokens(30_000)


def clip(samples: int, tokens: int = 3, vad: tuple[float, float, float] = (3, 3, 3)) -> Clip:
    waveform = np.random.default_rng(samples).standard_normal(samples).astype(np.float32) / 10
    return Clip(waveform, tuple(range(1000, 1000 + tokens)), vad)


# Clips


def test_lengths_are_spread_around_those_asked_for_and_none_is_above_the_longest():
    found = lengths([2, 8], 6)
    assert found == pytest.approx([1.7, 6.8, 2.0, 8.0, 2.3, 8.0])
    assert lengths([2, 4.5, 8], 2) == [2, 4.5]


def test_clips_are_cut_from_the_recordings_with_the_words_of_their_part():
    def tokens(words: str) -> list[int]:
        return [len(word) for word in words.split()]

    clips = cut_clips([2, 4.5], 4, tokens)
    assert [clip.duration_s for clip in clips] == pytest.approx([1.7, 3.825, 2.3, 5.175], abs=1e-3)
    assert clips[0].input_ids[:4] == tuple(map(len, ("And", "Mr.", "John", "Dashwood")))
    for item in clips:
        assert 2 < len(item.input_ids) / item.duration_s < 4.5
        assert item.waveform.std() > 0.01
    assert not np.array_equal(clips[0].waveform[:100], clips[2].waveform[:100])


def test_without_the_recordings_it_is_said_which_are_missing(tmp_path):
    with pytest.raises(ValueError, match=r"sense_and_sensibility_0870\.wav"):
        cut_clips([2], 1, TOKENS, tmp_path)


def test_random_tokens_are_one_for_each_word_and_always_the_same():
    ids = TOKENS("calm and calm")
    assert len(ids) == 5
    assert ids == TOKENS("calm and calm")
    assert ids[1] == ids[3] != ids[2]
    assert all(0 < token < 30_000 for token in ids)


def write_manifest(folder: Path, samples: list[int], splits: list[str]) -> Path:
    rows = ["path,transcript,valence,arousal,dominance,speaker,split"]
    for index, (size, split) in enumerate(zip(samples, splits, strict=True)):
        soundfile.write(folder / f"{index}.wav", clip(size).waveform, 16_000)
        rows.append(f"{index}.wav,words number {index},{1 + index / 5},3,3,A,{split}")
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder / "manifest.csv"


def test_labelled_clips_are_those_of_the_test_part_evenly_thinned(tmp_path):
    manifest = write_manifest(tmp_path, [200_000, 100, *[8_000] * 8], ["test", "test", "train", "test", *["test"] * 6])
    found = labelled_clips("manifest", manifest, 100, TOKENS)
    assert [round(item.vad[0] * 5 - 5) for item in found] == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert [len(item.waveform) for item in found[:3]] == [MAX_SAMPLES, 400, 8_000]
    thinned = labelled_clips("manifest", manifest, 3, TOKENS)
    assert [item.vad for item in thinned] == [found[index].vad for index in (0, 3, 6)]


def test_a_corpus_without_a_test_part_is_taken_whole(tmp_path):
    assert len(labelled_clips("manifest", write_manifest(tmp_path, [8_000] * 3, ["", "", ""]), 10, TOKENS)) == 3


# Batches


def test_batches_are_of_similar_length_longest_first():
    clips = [clip(samples) for samples in (500, 9_000, 700, 8_000, 600)]
    assert batches(clips, 2) == [[1, 3], [2, 4], [0]]
    assert batches(clips, 1) == [[1], [3], [2], [4], [0]]


@pytest.mark.parametrize(
    ("bucket_s", "tokens", "expected"),
    [(0.0, 0, (9_000, 5)), (0.5, 16, (16_000, 16)), (1.0, 4, (16_000, 8)), (None, 0, (128_000, 5))],
)
def test_a_batch_is_padded_to_its_bucket_and_says_the_true_lengths(bucket_s, tokens, expected):
    short, long = clip(700, 5), clip(9_000, 2)
    batch = padded([short, long], Batching(2, bucket_s, tokens))
    assert (batch["waveform"].shape[1], batch["input_ids"].shape[1]) == expected
    assert batch["num_samples"].tolist() == [[700], [9_000]]
    assert np.array_equal(batch["waveform"][0, :700], short.waveform)
    assert not batch["waveform"][0, 700:].any()
    assert batch["input_ids"][1, :3].tolist() == [1000, 1001, 0]
    assert batch["attention_mask"].sum(axis=1).tolist() == [5, 2]


def test_no_bucket_is_above_the_longest_clip():
    assert padded([clip(MAX_SAMPLES)], Batching(1, 3.0))["waveform"].shape == (1, MAX_SAMPLES)


def test_the_excess_is_what_is_computed_beyond_the_clips():
    clips = [clip(samples) for samples in (16_000, 8_000)]
    assert excess(clips, Batching(1, 0.0)) == 0
    assert excess(clips, Batching(1, 1.0)) == pytest.approx(8_000 / 24_000)
    assert excess(clips, Batching(2, 0.0)) == pytest.approx(8_000 / 24_000)
    assert excess(clips, Batching(1, None)) == pytest.approx(256_000 / 24_000 - 1)


# Rows


def test_all_rows_are_chosen_in_order_and_the_papers_way_is_first():
    assert [row.name for row in chosen([])] == list(ROWS)
    assert next(iter(ROWS)) == "paper"


def test_settings_change_a_row_and_name_it():
    [row] = chosen(["batched:size=8:bucket=0.5:tokens=8:threads=1:instances=2:spins=0"])
    assert row.batching == Batching(8, 0.5, 8)
    assert (row.threads, row.instances, row.spins) == (1, 2, False)
    assert row.name == "batched:size=8:bucket=0.5:tokens=8:threads=1:instances=2:spins=0"
    assert "size=8" in row.what
    assert [row.name for row in chosen(["shared", "shared:threads=1"])] == ["shared", "shared:threads=1"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["fast"], "there is no row 'fast'"),
        (["shared", "shared"], "twice"),
        (["shared:width=2"], "a setting is one of"),
        (["shared:threads"], "a setting is one of"),
        (["shared:threads=0"], "threads cannot be '0'"),
        (["batched:size=many"], "size cannot be 'many'"),
    ],
)
def test_what_is_no_row_is_told(names, said):
    with pytest.raises(ValueError, match=said):
        chosen(names)


def test_rows_for_another_device_say_so():
    assert unavailable(ROWS["gpu-bf16"], "cpu") == "it is for a GPU"
    assert unavailable(ROWS["batched"], "cuda") == "it is for a CPU"
    assert unavailable(ROWS["paper"], "cpu") == unavailable(ROWS["paper"], "cuda") == ""


def test_a_provider_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert "TensorrtExecutionProvider" in unavailable(ROWS["tensorrt"], "cuda")
    assert "CUDAExecutionProvider" in unavailable(ROWS["onnx-cuda"], "cuda")
    assert unavailable(ROWS["shared"], "cpu") == ""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert unavailable(ROWS["onnx-cuda"], "cuda") == ""


@pytest.mark.parametrize("has", [False, True])
def test_bfloat16_is_for_processors_that_have_it(monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert (unavailable(ROWS["bf16"], "cpu") == "") == has


def test_a_row_needs_what_it_runs_and_what_that_is_made_of():
    assert needed(ROWS["paper"]) == {EAGER}
    assert needed(ROWS["onnx"]) == {EAGER, WHOLE}
    assert needed(ROWS["int8-mixed"]) == {EAGER, CUT, "int8-mixed"}
    assert needed(ROWS["bf16"]) == {EAGER, CUT}


# 8 bits


TWO_STREAMS = """
<ir_version: 10, opset_import: ["" : 20]>
streams (float[B, 256] waveform, float[B, 128] text_state) => (float[B, 4] vad)
{
    rows = Shape <start = 0, end = 1> (waveform)
    wide = Constant <value_ints = [128]> ()
    shape = Concat <axis = 0> (rows, wide)
    words = Reshape (text_state, shape)
    voice_1 = MatMul (waveform, expanding)
    voice_2 = MatMul (voice_1, contracting)
    words_1 = MatMul (words, of_words)
    joined = Concat <axis = 1> (voice_2, words_1)
    vad = MatMul (joined, of_both)
}
"""
MATRICES = {"expanding": (256, 256), "contracting": (256, 128), "of_words": (128, 128), "of_both": (256, 4)}


@pytest.fixture
def two_streams(tmp_path) -> Path:
    """A graph of two streams that meet at the end; as in the exported ones, a size of one shapes the other."""
    model = onnx.parser.parse_model(TWO_STREAMS)
    random = np.random.default_rng(0)
    for name, shape in MATRICES.items():
        weights = random.standard_normal(shape, np.float32) / math.sqrt(shape[0])
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    for node in model.graph.node:
        node.name = f"product with {node.input[1]}" if node.op_type == "MatMul" else node.output[0]
    onnx.save(model, tmp_path / "float32.onnx")
    return tmp_path / "float32.onnx"


def run_graph(graph: Path, waveform: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(None, {"waveform": waveform, "text_state": np.ones((len(waveform), 128), np.float32)})[0]


def constants(graph: Path) -> dict[str, int]:
    """Element types of the matrices that are there still, or in a new form, by their names."""
    return {tensor.name: tensor.data_type for tensor in onnx.load(graph).graph.initializer}


def test_products_are_told_by_stream_and_by_where_outliers_are(two_streams):
    found = int8.products(onnx.load(two_streams))
    assert found.plain == ("product with expanding",)
    assert found.outliers == ("product with contracting", "product with of_words")


@pytest.mark.parametrize(("way", "blocks", "whole"), [("tensors", 0, 3), ("blocks", 3, 0), ("mixed", 2, 1)])
def test_quantised_products_are_near_those_of_float32(two_streams, tmp_path, way, blocks, whole):
    int8.quantise(two_streams, tmp_path / "deeper" / "int8.onnx", way)
    graph = onnx.load(tmp_path / "deeper" / "int8.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert (kinds.count("MatMulNBits"), kinds.count("MatMulInteger"), kinds.count("MatMul")) == (blocks, whole, 1)
    assert "of_both" in constants(tmp_path / "deeper" / "int8.onnx")
    assert not {"expanding", "contracting", "of_words"} & constants(tmp_path / "deeper" / "int8.onnx").keys()
    waveform = np.random.default_rng(1).standard_normal((3, 256), np.float32)
    deviation = np.abs(run_graph(tmp_path / "deeper" / "int8.onnx", waveform) - run_graph(two_streams, waveform))
    assert 0 < deviation.max() < 0.1


def test_an_outlier_in_the_batch_costs_others_their_accuracy_but_not_in_blocks(two_streams, tmp_path):
    alone = np.random.default_rng(1).standard_normal((1, 256), np.float32)
    beside = np.concatenate([alone, 1_000 * alone])
    change = {}
    for way in ("tensors", "blocks"):
        int8.quantise(two_streams, tmp_path / f"{way}.onnx", way)
        answer = run_graph(tmp_path / f"{way}.onnx", alone)
        change[way] = np.abs(run_graph(tmp_path / f"{way}.onnx", beside)[0] - answer).max()
    assert change["blocks"] < 1e-4
    assert change["tensors"] > 0.1


# Processes and their turns


def test_a_process_answers_one_request_after_the_other():
    worker = Worker(Sleeper("it", 0.5, value=2.0))
    try:
        assert worker.peak_bytes > 1e6
        first, second = worker.ask(), worker.ask([1, 2])
        assert first.answers.tolist() == [[2, 2, 2]]
        assert second.answers.shape == (2, 3)
        assert 0.5 <= first.wall_s < 30
        assert first.processor_s < 0.4, "it sleeps"
    finally:
        worker.close()
    assert not worker.is_alive()


def test_a_process_that_cannot_start_says_why_in_one_line():
    with pytest.raises(RowFailed, match=r"^OSError: there is no such graph$"):
        Worker(FailsToStart())


@pytest.mark.parametrize(
    ("job", "said"), [(FailsAt(2), "ValueError: out of memory"), (FailsAt(2, status=9), "ended with status 9")]
)
def test_a_process_that_fails_or_ends_is_told(job, said):
    worker = Worker(job)
    worker.ask()
    with pytest.raises(RowFailed, match=said):
        worker.ask()
    worker.close()
    assert not worker.is_alive()


def test_rows_take_turns_and_each_is_compared_with_the_first(tmp_path):
    log = tmp_path / "log"
    jobs = {name: Sleeper(name, seconds, log=log) for name, seconds in (("slow", 0.2), ("fast", 0.02), ("other", 0.1))}
    found = take_turns(jobs, Meter(), 3, {"part": [1, 2]})
    assert log.read_text().split() == ["slow", "fast", "other"] * 3 + ["slow", "fast", "other"]
    assert [len(timed.passes) for timed in found.rows.values()] == [3, 3, 3]
    assert found.rows["slow"].ratio == 1
    assert 5 < found.rows["fast"].ratio < 10.5
    assert found.rows["fast"].labelled["part"].shape == (2, 3)
    assert found.rates == [{"float32": 1e9, "int8": 4e9}] * 3


def test_where_memory_is_short_rows_come_in_groups_beside_the_first(tmp_path):
    log = tmp_path / "log"
    jobs = {name: Sleeper(name, 0, log=log) for name in ("first", "a", "b", "c")}
    found = take_turns(jobs, Meter(), 2, {"part": [1]}, available=lambda: 0)
    assert log.read_text().split() == [
        *(["first", "a"] * 2 + ["first", "a"]),
        *(["first", "b"] * 2 + ["b"]),
        *(["first", "c"] * 2 + ["c"]),
    ]
    assert {name: len(timed.passes) for name, timed in found.rows.items()} == {"first": 6, "a": 2, "b": 2, "c": 2}


def test_a_row_that_fails_is_out_and_the_others_go_on():
    jobs = {"first": Sleeper("first", 0), "broken": FailsToStart(), "late": FailsAt(2), "last": Sleeper("last", 0)}
    found = take_turns(jobs, Meter(), 2, {"part": [1]})
    assert found.rows.keys() == {"first", "last"}
    assert found.failures == {"broken": "OSError: there is no such graph", "late": "ValueError: out of memory"}


def test_without_the_first_row_there_is_nothing_to_compare_with():
    with pytest.raises(RowFailed, match="out of memory"):
        take_turns({"first": FailsAt(1), "other": Sleeper("other", 0)}, Meter(), 1)


def test_the_available_memory_is_read():
    assert 1e8 < available_bytes() < 1e14


# Figures and tables


def taken(wall_s: float, values: list[list[float]]) -> Answered:
    return Answered(np.array(values, np.float32), wall_s, wall_s / 2, 3 * 2**30)


LABELLED = {
    "heard": (clip(500, vad=(1, 2, math.nan)), clip(600, vad=(2, 4, math.nan)), clip(700, vad=(3, 3, math.nan)))
}
"""Labels of three clips, none of dominance."""


@pytest.fixture
def measured() -> Measurements:
    right = np.array([[1, 2, 3], [2, 4, 3], [3, 3, 3]], np.float32)
    first = [taken(seconds, [[3, 3, 3], [2, 2, 2]]) for seconds in (4.0, 2.0, 30.0)]
    fast = [taken(seconds, [[3.5, 3, 3], [2, 2.25, 2]]) for seconds in (0.5, 0.4, 9.0)]
    rows = {"paper": Timed(first, first, {"heard": right}), "int8-mixed": Timed(fast, first, {"heard": right + 1})}
    return Measurements(rows, [{"float32": 1e9, "int8": 4e9}, {"float32": 3e9, "int8": 8e9}], {})


@pytest.fixture
def figures(measured) -> list[Result]:
    rows = [ROWS["paper"], ROWS["merged"], ROWS["int8-mixed"]]
    return results(rows, measured, [clip(16_000), clip(48_000)], 6 * 10**9, LABELLED)


def test_figures_are_medians_beside_the_first_row(figures):
    first, fast = figures
    assert (first.name, fast.name) == ("paper", "int8-mixed"), "a row that failed has none"
    assert (first.per_s, first.real_time, first.ratio) == (0.5, 1.0, 1.0)
    assert (fast.per_s, fast.real_time, fast.ratio) == (4.0, 8.0, 8.0)
    assert first.of_floor == pytest.approx(6 / 2 / 4), "operations, at the median rate of float32, of four seconds"
    assert fast.of_floor == pytest.approx(6 / 6 / 0.5), "at the rate of 8 bits"
    assert first.padding == pytest.approx(3.0)
    assert fast.memory_bytes == 3 * 2**30


def test_deviations_and_the_change_of_concordance_are_by_dimension(figures):
    first, fast = figures
    assert first.max_deviation == (0, 0, 0)
    assert fast.max_deviation == (0.5, 0.25, 0)
    assert fast.mean_deviation == (0.25, 0.125, 0)
    assert first.ccc["heard"][:2] == pytest.approx((1, 1))
    assert fast.ccc_change["heard"][:2] == pytest.approx([2 * 2 / 3 / (2 * 2 / 3 + 1) - 1] * 2, abs=1e-6)
    assert math.isnan(fast.ccc_change["heard"][2]), "no label of dominance"
    assert json.loads(json.dumps(fast.record()))["ccc_change"]["heard"][2] is None


def test_the_tables_hold_the_figures(figures):
    lines = row_table(figures).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| 4.00 | 8.0 | 8.00 | 200% |" in lines[3]
    assert "| 0.500 / 0.250 / 0.000 |" in lines[3]
    assert ccc_table(figures).splitlines()[2:] == [
        "| paper | 1.000 / 1.000 / none |",
        "| int8-mixed | -0.4286 / -0.4286 / none |",
    ]
    assert "1.5 ms at the rate of float32" in rate_line(median_rates([{"float32": 2e9}]), 6 * 10**6, 2)
    assert skipped_list({"tensorrt": "it is for a GPU"}) == "- tensorrt: not measured: it is for a GPU"


def test_the_least_is_counted_clip_by_clip_at_true_lengths():
    short, long = clip(32_000, 8), clip(64_000, 8)
    assert operations_of("tiny", [short, long]) == operations_of("tiny", [short]) + operations_of("tiny", [long])
    assert operations_of("tiny", [long]) > 1.9 * operations_of("tiny", [short])
    assert operations_of("tiny", [clip(32_000, 80)]) > operations_of("tiny", [short])


def test_rates_are_those_of_products():
    size = 128
    started_s = time.perf_counter()
    rates = Rates("cpu", 1, size)()
    least = 2 * size**3 / (time.perf_counter() - started_s)
    assert rates.keys() == {"float32", "bfloat16", "int8"}
    assert all(rate > least for rate in rates.values())


# Regressors and graphs


@pytest.fixture(scope="module")
def models():
    return TINY.build()


def test_random_regressors_are_the_same_in_every_build(models):
    for ours, again in zip(models, TINY.build(), strict=True):
        assert ours.config == again.config
        state = again.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


def test_random_regressors_share_frozen_towers_and_differ_in_their_adapters(models):
    valence, other = (model.audio_tower.state_dict() for model in models)
    differing = {name for name, value in valence.items() if not torch.equal(value, other[name])}
    assert differing
    assert all(".lora_" in name for name in differing)


def test_random_answers_spread_and_adapters_count(models):
    speech = [padded([item], Batching()) for item in cut_clips([2, 4, 6, 8], 4, TINY.tokens())]
    inputs = [{name: torch.from_numpy(value) for name, value in item.items()} for item in speech]
    for model in models:
        with torch.inference_mode():
            found = torch.cat([model(**item) for item in inputs])
            without = torch.cat([_without_adapters(model)(**item) for item in inputs])
        assert (found.std(dim=0) > 0.1).all()
        assert (found - without).abs().max() > 0.01


def _without_adapters(model):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in changed.named_parameters():
            if ".lora_B." in name:
                value.zero_()
    return changed


def test_saved_regressors_are_read_back_whole(models, tmp_path):
    save_models(models, tmp_path)
    for ours, read in zip(models, load_models(tmp_path), strict=True):
        assert read.config == ours.config
        assert not read.training
        state = read.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


def test_files_are_kept_for_the_same_regressors_and_made_anew_for_others(monkeypatch, tmp_path):
    built: list[Tower] = []

    def build(tower: Tower) -> list:
        built.append(tower)
        return []

    monkeypatch.setattr(Tower, "build", build)
    monkeypatch.setattr(graphs_module, "save_models", lambda models, place: place.mkdir())
    folder = tmp_path / "made"
    prepare(TINY, {EAGER}, folder)
    prepare(TINY, {EAGER}, folder)
    assert built == [TINY]
    prepare(replace(TINY, name="paper"), {EAGER}, folder)
    assert [tower.name for tower in built] == ["tiny", "paper"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds something else"):
        prepare(TINY, {EAGER}, tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The tiny towers' files: for PyTorch, cut, and those in 8 bits."""
    folder = tmp_path_factory.mktemp("encoders") / "graphs"
    prepare(TINY, {EAGER, CUT, "int8-mixed"}, folder)
    return folder


def test_the_cut_is_that_of_the_graphs(made):
    cut = read_cut(made)
    assert (cut.audio, cut.text, cut.pooled) == (0, 0, False)
    assert sorted(path.stem for path in (made / "cut").glob("*.onnx")) == sorted(
        ["emotion_encoder", *(spec.name for spec in REGRESSORS)]
    )


@pytest.mark.parametrize(
    "name", ["merged", "true-length", "buckets", "shared", "batched:size=3", "batched:instances=2"]
)
def test_every_way_in_float32_answers_alike(made, name):
    clips = [clip(samples, tokens) for samples, tokens in ((9_000, 4), (30_000, 9), (16_000, 2))]
    [row] = chosen([name])
    expected = answers(engine_of(ROWS["paper"], made, "cpu", 1), clips, ROWS["paper"])
    found = answers(engine_of(row, made, "cpu", 1), clips, row)
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_and_not_the_same(made, dtype):
    """As on a GPU, whose rows have these numbers too."""
    clips = [clip(9_000, 4), clip(30_000, 9)]
    row = replace(ROWS["gpu-bf16"], numerics=dtype)
    plain = replace(row, numerics="float32")
    found, expected = (answers(engine_of(way, made, "cpu", 1), clips, way) for way in (row, plain))
    assert 0 < np.abs(found - expected).max() < 1


# The command


def bench(*arguments: str):
    return CliRunner().invoke(encoders, [*arguments])


def test_the_command_measures_what_is_asked_for(made, tmp_path):
    manifest = write_manifest(tmp_path, [16_000, 20_000, 30_000], [""] * 3)
    options = ["--tower", "tiny", "--rows", "paper,batched:size=3,int8-mixed,tensorrt", "--clips", "3"]
    options += ["--seconds", "1,2", "--repeats", "1", "--threads", "1", "--graphs", str(made)]
    result = bench(*options, "--folder", f"manifest={manifest}")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout.splitlines()[-1])
    assert [row["name"] for row in figures["rows"]] == ["paper", "batched:size=3", "int8-mixed"]
    assert figures["skipped"] == {"tensorrt": "it is for a GPU"}
    paper, batched, mixed = figures["rows"]
    assert all(len(row["wall_s"]) == 1 and row["per_s"] > 0 for row in figures["rows"])
    assert max(batched["max_deviation"]) < 1e-3
    assert 0 < max(mixed["max_deviation"]) < 1
    assert len(paper["ccc"]["manifest"]) == 3
    for told in ("hardware:", "| shipped | 8 | 32 |", "matrix products", "- tensorrt: not measured", "| paper | 8 |"):
        assert told in result.stdout


def test_the_papers_towers_do_not_ship():
    result = bench("--tower", "paper")
    assert result.exit_code == 2
    assert "--random-weights" in result.output


@pytest.mark.parametrize("value", ["", "2,", "9", "0", "two"])
def test_lengths_that_are_none_are_refused(value):
    result = bench("--tower", "tiny", "--seconds", value)
    assert result.exit_code == 2
    assert "such as 2,4.5,8" in result.output


def test_a_row_that_is_none_is_told():
    result = bench("--tower", "tiny", "--rows", "fastest")
    assert result.exit_code == 1
    assert "there is no row 'fastest'" in result.output


def test_where_no_row_can_be_measured_it_is_said_why():
    result = bench("--tower", "tiny", "--device", "cpu", "--rows", "tensorrt")
    assert result.exit_code == 1
    assert "tensorrt: not measured: it is for a GPU" in result.output
