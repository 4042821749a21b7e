"""Metadata that others publish, on files of their layout made here."""

import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from phantom_s2v.data.formats.exchange import read_export
from phantom_s2v.data.formats.published import decode_mask, read_opens2v, read_phantom_data
from phantom_s2v.data.loader import decode
from phantom_s2v.data.triplets import Rights
from phantom_s2v.errors import DataError
from phantom_s2v.media import images

RIGHTS = Rights("", "research only")


def source_video(path, seed):
    """Ten frames of 96x48 that grow brighter, with a red square at (60, 12)."""
    frames = np.stack([np.full((48, 96, 3), 40 + 8 * i + seed, np.uint8) for i in range(10)])
    frames[:, 12:32, 60:80] = (220, 20, 20)
    images.write_video(path, frames, 12)


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(3):
        source_video(folder / f"uuid_{i}.0_{i + 1}.0.mp4", i)
    return folder


def parquet(path, rows):
    ids, captions, pairs = zip(*rows, strict=True)
    columns = {"video_id": ids, "video_caption": captions, "cross_pair": [json.dumps(p) for p in pairs]}
    pq.write_table(pa.table(columns), path)
    return path


def reference(vid, box, frame="0.5"):
    return {"vid": vid, "frame_idx": frame, "bbox_loc": [box], "scores": 0.8}


def test_phantom_data(clips, tmp_path):
    scale = 768 / 96
    square = [60 * scale, 12 * scale, 80 * scale, 32 * scale]
    whole = {"red square": {"obj_from_tgt_video": [], "refer_result": [[reference("uuid_1.0_2.0", square)]]}}
    beyond = {"red square": {"refer_result": [[reference("uuid_1.0_2.0", [700, 10, 860, 200])]]}}
    gone = {"red square": {"refer_result": [[reference("uuid_9.0_9.5", square)]]}}
    rows = [("uuid_0.0_1.0", "A red square.", whole), ("uuid_7.0_8.0", "x", whole)]
    rows += [("uuid_2.0_3.0", "y", beyond), ("uuid_1.0_2.0", "z", gone), ("../uuid_0.0_1.0", "q", whole)]
    left = []
    (triplet,) = read_phantom_data(parquet(tmp_path / "a.parquet", rows), clips, RIGHTS, left.append)
    sample = decode(triplet)
    assert (triplet.caption, sample.video.shape) == ("A red square.", (10, 48, 96, 3))
    assert triplet.references[0].pairing == "cross-pair"
    assert sample.references[0].shape == (20, 20, 3)
    assert np.abs(sample.references[0][4:-4, 4:-4].astype(int) - (220, 20, 20)).max() < 40
    assert triplet.references[0].rights == Rights("Koala-36M uuid_1.0_2.0", "research only")
    said = " ".join(left)
    for reason in ("uuid_7.0_8.0.mp4 is missing", "outside the frame", "uuid_9.0_9.5.mp4 is missing", "outside the clips folder"):
        assert reason in said
    pq.write_table(pa.table({"a": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="must have the columns video_id"):
        list(read_phantom_data(tmp_path / "b.parquet", clips, RIGHTS, left.append))
    (tmp_path / "c.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="not a Parquet"):
        list(read_phantom_data(tmp_path / "c.parquet", clips, RIGHTS, left.append))


def encode_mask(mask):
    """COCO's compressed run lengths, as COCO's own library writes them."""
    coded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1 << 30))
def test_run_lengths_come_back(height, width, seed):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((-(-height // 5), -(-width // 5))) < 0.5, np.ones((5, 5)))[:height, :width] > 0
    assert (decode_mask(encode_mask(mask)) == mask).all()


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(DataError, match="must have"):
        decode_mask({"size": [3, 3], "counts": encode_mask(np.ones((2, 2), bool))["counts"]})


@pytest.mark.parametrize("counts", ["", "o", "o" * 40, "\x01\x7f", "é", "@@@", "0"])
def test_damaged_run_lengths_give_no_mask(counts):
    """COCO's own library gives memory that nobody wrote for the first and for masks that are too short."""
    with pytest.raises(DataError, match=r"a mask must have 16 pixels|are damaged"):
        decode_mask({"size": [4, 4], "counts": counts})


def test_opens2v(clips, tmp_path):
    mask = np.zeros((48, 90), bool)
    mask[12:32, 56:76] = True
    facts = {"path": "uuid_0.0_1.0.mp4", "cut": [2, 8], "crop": [4, 94, 0, 48], "cap": ["A square."], "aesthetic": 5.0}
    boxes = [
        {"class_name": "square", "bbox": [56, 12, 76, 32], "gme_score": 0.5},
        {"class_name": "square", "bbox": [0, 0, 9, 9], "gme_score": 0.2},
        {"class_name": "wall", "bbox": [0, 0, 30, 40], "gme_score": 0.3},
    ]
    shown = {"ann_frame_idx": 1, "annotations": boxes, "box_format": "xyxy"}
    annotation = {"ann_frame_data": shown, "mask_annotation": {"1": {"1": encode_mask(mask)}}}
    gone = {"metadata": {**facts, "path": "gone.mp4"}, "annotation": {}}
    entries = {"a": {"metadata": facts, "annotation": annotation}, "b": gone, "c": {"metadata": facts}}
    (tmp_path / "a.json").write_text(json.dumps(entries))
    left = []
    (triplet,) = read_opens2v(tmp_path / "a.json", clips, RIGHTS, left.append)
    sample = decode(triplet)
    assert sample.video.shape == (6, 48, 90, 3)
    assert abs(float(sample.video[0, :, :50].mean()) - 56) < 3  # the third frame of the source video
    assert [r.subject for r in triplet.references] == ["square", "wall"]
    assert np.abs(sample.references[0][4:-4, 4:-4].astype(int) - (220, 20, 20)).max() < 40
    assert images.Image.open(__import__("io").BytesIO(triplet.references[0].mask)).size == (20, 20)
    assert triplet.scores == {"aesthetic": 5.0}
    assert "gone.mp4 is missing" in left[0]
    assert "annotation" in left[1]
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(DataError, match="not a valid JSON object"):
        list(read_opens2v(tmp_path / "b.json", clips, RIGHTS, left.append))


def test_opens2v_is_read_item_by_item(tmp_path):
    """A list of missing clips: memory does not grow with the file, and each is named."""
    peaks = []
    for count in (500, 4000):
        entry = {"metadata": {"path": "gone.mp4", "cap": ["x" * 2000]}, "annotation": {}}
        (tmp_path / "a.json").write_text(json.dumps({f"clip {i}": entry for i in range(count)}))

        def count_one(line):
            nonlocal said
            said += "the clip gone.mp4 is missing" in line

        reads = []
        for _ in range(3):  # threads that earlier tests left behind are traced too, so the least counts
            said = 0
            tracemalloc.start()
            assert list(read_opens2v(tmp_path / "a.json", tmp_path, RIGHTS, count_one)) == []
            reads.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert said == count
        peaks.append(min(reads))
    assert peaks[1] < peaks[0] + 200_000 < (tmp_path / "a.json").stat().st_size / 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "{ must come next"), ("[]", "{ must come next"), ("nan", "{ must come next"), ("{", "Expecting value"),
        ('{"a": NaN}', "not a JSON number"), ('{"a": ' + "[" * 100_000, "too deeply"), ('{"a" 1}', ": must come next"),
        ('{"a": 12', "end of the file"), ('{1: 2}', "a valid JSON object"),
    ],
)  # fmt: skip
def test_what_is_no_opens2v_is_one_sentence(tmp_path, text, reason):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=reason) as caught:
        list(read_opens2v(tmp_path / "a.json", tmp_path, RIGHTS, pytest.fail))
    assert len(str(caught.value).splitlines()) == 1
    left = []
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b' \n{"first": {}, "second": {"metadata": [1, 2')
    assert list(read_opens2v(tmp_path / "a.json", tmp_path, RIGHTS, left.append)) == []
    assert left[0] == "first: 'metadata' is missing"
    assert left[1].startswith("the rest after 1 items: ")
    assert len(left) == 2


def test_an_item_of_any_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("phantom_s2v.files.io.MAX_ITEM", 200_000)
    (tmp_path / "a.json").write_text(json.dumps({"a": {}, "b": ["x" * 1000] * 1000}))
    left = []
    assert list(read_opens2v(tmp_path / "a.json", tmp_path, RIGHTS, left.append)) == []
    assert "an item must have at most" in left[1]


def test_the_command_line_merges_what_is_there(clips, tmp_path, monkeypatch, capsys):
    from phantom_s2v import cli

    square = [480, 96, 640, 256]
    rows = [("uuid_0.0_1.0", "A red square.", {"square": {"refer_result": [[reference("uuid_1.0_2.0", square)]]}})]
    file = parquet(tmp_path / "a.parquet", [*rows, ("uuid_5.0_6.0", "x", {})])
    out = tmp_path / "t.lance"
    ask = ["phantom", "data", "import", str(file), "--out", str(out), "--published", "phantom-data"]
    for more, code in ((["--clips", str(clips)], 3), ([], 2), (["--clips", str(tmp_path / "none")], 2)):
        monkeypatch.setattr("sys.argv", [*ask, *more])
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert done.value.code == code
        said = capsys.readouterr()
        if code == 3:
            assert json.loads(said.out) == {"new": 1, "triplets": 1, "left_out": 1}
            assert "uuid_5.0_6.0.mp4 is missing" in said.err
    with pytest.raises(DataError, match="does not exist"):
        list(read_export(tmp_path / "nothing", print))
