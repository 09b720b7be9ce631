"""The conversion command on random weights in the published layouts."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from imis_net.networks.build import imis_net_vit_b

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = ROOT.parent / "shared" / "reference" / "imis_state_dict.json"


@pytest.fixture(scope="module")
def sam_weights() -> dict[str, torch.Tensor]:
    """SAM ViT-B's layout from Meta's own package."""
    from segment_anything import sam_model_registry

    return sam_model_registry["vit_b"]().state_dict()


@pytest.mark.skipif(not LAYOUT.is_file(), reason="needs the official key list in ../shared/reference")
def test_official_layout_fills_everything(run_script, tmp_path):
    """Breaks if one of the 527 official keys is lost, left over or misshaped."""
    entries = json.loads(LAYOUT.read_text())["entries"]
    source, target = tmp_path / "IMISNet-B.pth", tmp_path / "out.safetensors"
    torch.save({e["key"]: torch.full(e["shape"], 0.5) for e in entries}, source)
    done = run_script("convert_checkpoint", "--from", "imis-bench", source, "--out", target)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["fresh"] == report["unexpected"] == []
    assert len(report["ignored"]) == 6
    assert report["input"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    with safe_open(target, "pt") as file:
        assert set(file.keys()) == set(imis_net_vit_b().state_dict())
        assert file.metadata()["architecture"] == "imis_net_vit_b"


def test_missing_keys_exit_2_with_the_list_and_write_nothing(run_script, tmp_path):
    """Breaks if half a checkpoint becomes a model."""
    source, target = tmp_path / "half.pth", tmp_path / "out.safetensors"
    torch.save({"image_encoder.neck.0.weight": torch.ones(3, 3)}, source)
    done = run_script("convert_checkpoint", "--from", "imis-bench", source, "--out", target)
    assert done.returncode == 2
    assert "missing (472)" in done.stderr
    assert "image_encoder.neck.0.weight: expected [768, 768, 1, 1], got [3, 3]" in done.stderr
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(("layout", "extra"), [("sam", {}), ("sam-med2d", {"image_encoder.blocks.0.Adapter.x": (2,)})])
def test_sam_layouts_fill_the_trunk(run_script, tmp_path, sam_weights, layout, extra):
    """Breaks if Meta's trunk no longer starts ours, or an adapter layer makes the file unusable."""
    source, target = tmp_path / "sam.pth", tmp_path / "out.safetensors"
    torch.save({**sam_weights, **{k: torch.zeros(s) for k, s in extra.items()}}, source)
    done = run_script("convert_checkpoint", "--from", layout, source, "--out", target, "--decoder-dim", 256)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert all(k.startswith(("text_", "mask_decoder.text", "mask_decoder.semantic")) for k in report["fresh"])
    with safe_open(target, "pt") as file:
        ours = file.get_tensor("image_encoder.trunk.blocks.3.attn.qkv.weight")
    assert ours.equal(sam_weights["image_encoder.blocks.3.attn.qkv.weight"])
