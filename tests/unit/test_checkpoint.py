"""Reading, mapping and writing weights."""

import argparse
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from imis_net.checkpoint import (
    convert,
    fill,
    load_weights,
    read_state_dict,
    resize_position_tables,
    save_weights,
)
from imis_net.errors import CheckpointError


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil_was_here",)


def test_pickled_code_is_refused_and_not_run(tmp_path, monkeypatch):
    """Breaks if a checkpoint is unpickled: the file would run what it likes."""
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: refused"):
        read_state_dict(tmp_path / "evil.pth")
    assert not (tmp_path / "evil_was_here").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_unreadable_files_are_named(tmp_path, content, suffix):
    """Breaks if torch's or safetensors' own errors escape."""
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="weights"):
        read_state_dict(path)


@pytest.mark.parametrize("wrapper", ["model_state_dict", "state_dict", None])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrapper):
    """Breaks if what train.py or a parallel run writes no longer loads."""
    state = {"module.a.weight": torch.ones(2)}
    content = {wrapper: state, "args": argparse.Namespace(lr=1), "epoch": 3} if wrapper else state
    torch.save(content, tmp_path / "c.pth")
    assert list(read_state_dict(tmp_path / "c.pth")) == ["a.weight"]


def test_file_without_tensors_is_refused(tmp_path):
    """Breaks if an empty dictionary counts as a checkpoint."""
    torch.save({"epoch": 3}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="found none"):
        read_state_dict(tmp_path / "c.pth")


def test_imis_bench_names():
    """Breaks if a part of the official layout goes elsewhere."""
    names = {
        "image_encoder.sam_encoder.blocks.3.mlp.fc1.weight": "image_encoder.trunk.blocks.3.mlp.lin1.weight",
        "image_encoder.sam_encoder.pos_embed": "image_encoder.trunk.pos_embed",
        "image_encoder.neck.0.weight": "image_encoder.neck.0.weight",
        "text_out_dim.bias": "text_projection.bias",
        "text_model.text_model.final_layer_norm.bias": "text_encoder.tower.ln_final.bias",
        "text_model.encoder.layers.0.mlp.fc2.bias": "text_encoder.tower.transformer.resblocks.0.mlp.c_proj.bias",
    }
    for theirs, ours in names.items():
        assert list(convert({theirs: torch.ones(1)}, "imis-bench")[0]) == [ours]


def test_unused_neck_and_position_ids_are_ignored_not_unexpected():
    """Breaks if the neck that timm builds in vain, or an old transformers' position ids, make a load fail."""
    state = {
        "image_encoder.sam_encoder.neck.0.weight": torch.ones(1),
        "text_model.text_model.embeddings.position_ids": torch.ones(1),
    }
    renamed, ignored = convert(state, "imis-bench")
    assert renamed == {}
    assert sorted(ignored) == sorted(state)


def test_tables_of_256_px_are_brought_to_the_stored_grid():
    """Breaks if SAM-Med2D's 16 x 16 tables are refused, or a window block's table is stretched with the global ones."""
    ramp = torch.linspace(0, 1, 31)[:, None].expand(31, 4)
    published = {
        "image_encoder.pos_embed": torch.full((1, 16, 16, 4), 0.5),
        "image_encoder.blocks.0.attn.rel_pos_h": torch.zeros(27, 4),
        "image_encoder.blocks.2.attn.rel_pos_h": ramp,
        "image_encoder.blocks.2.Adapter.channel.0.weight": torch.zeros(1),
    }
    state, ignored = convert(published, "sam-med2d")
    assert ignored == ["image_encoder.blocks.2.Adapter.channel.0.weight"]
    trunk = "image_encoder.trunk."
    assert resize_position_tables(state) == [f"{trunk}pos_embed", f"{trunk}blocks.2.attn.rel_pos_h"]
    torch.testing.assert_close(state[f"{trunk}pos_embed"], torch.full((1, 64, 64, 4), 0.5))
    assert state[f"{trunk}blocks.0.attn.rel_pos_h"].shape == (27, 4)
    stretched = state[f"{trunk}blocks.2.attn.rel_pos_h"][:, 0]
    assert stretched.shape == (127,)
    assert (stretched.diff() >= 0).all()
    assert (stretched[63] - 0.5).abs() < 1e-6
    assert resize_position_tables(state) == []


def test_fill_reports_what_it_met():
    """Breaks if a missing, superfluous or wrongly shaped tensor passes in silence."""
    layer = nn.Linear(2, 3)
    report = fill(layer, {"weight": torch.zeros(2, 2), "extra": torch.ones(1)})
    assert report.missing == ["bias"]
    assert report.unexpected == ["extra"]
    assert report.wrong_shape == ["weight: expected [3, 2], got [2, 2]"]
    assert "missing (1):\n  bias" in report.problems()


def test_load_is_strict(tmp_path):
    """Breaks if half a network keeps random weights."""
    save_file({"weight": torch.zeros(3, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="bias"):
        load_weights(nn.Linear(2, 3), tmp_path / "w.safetensors")


@pytest.mark.parametrize("half", [False, True])
def test_saved_weights_come_back(tmp_path, half):
    """Breaks if saving loses a tensor, or half precision is not asked for and taken."""
    layer, other = nn.Linear(4, 4), nn.Linear(4, 4)
    path = tmp_path / "w.safetensors"
    save_weights(layer, path, {"architecture": "test"}, half)
    assert load_file(path)["weight"].dtype == (torch.float16 if half else torch.float32)
    load_weights(other, path)
    torch.testing.assert_close(other.weight, layer.weight, atol=1e-3 if half else 0, rtol=0)


def test_failed_save_leaves_the_old_file(tmp_path):
    """Breaks if weights are written in place: a full disk would leave half a file under the production name."""
    path = tmp_path / "w.safetensors"
    save_weights(nn.Linear(2, 2), path, {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_weights(nn.Linear(3, 3), path, {"not text": 1})  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
