"""From an artifact to the folder that other servers load: the form of a transformers sequence classifier.

::

    FOLDER/
        config.json               of transformers, with the labels
        modeling.py               the network: see loadtest/rivals/modeling.py
        model.safetensors         the artifact's weights, as they are
        tokenizer.json, ...       the artifact's tokenizer, cutting where the artifact cuts
        normalizer.py             where the artifact normalizes texts
        model_quantized.onnx      the served INT8 graph, with the inputs and the output that transformers expects
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

from train.artifact import InvalidArtifact, Layout, new_folder, write_json

CLASS = "TritoxForSequenceClassification"


def convert(artifact: Path, folder: Path) -> None:
    """Write ``folder``; an old one is replaced when the new one is whole.

    :raises InvalidArtifact: for an artifact that other servers cannot score.
    """
    layout = Layout(artifact)
    layout.check()
    config, labels = layout.read_config(), layout.read_labels().labels
    if config.kind != "transformer":
        raise InvalidArtifact(f"{artifact} is a {config.kind} model: rivals serve transformers, give one of these")
    if layout.calibration.is_file():
        raise InvalidArtifact(
            f"{artifact} is calibrated by isotonic regression, which a transformers classifier has no place for: its "
            "scores could not be equal; give an artifact without calibration.json"
        )
    with new_folder(folder) as new:
        for file in layout.tokenizer.iterdir():
            shutil.copyfile(file, new / file.name)
        tokenizer = json.loads((new / "tokenizer_config.json").read_text(encoding="utf-8"))
        write_json(new / "tokenizer_config.json", {**tokenizer, "model_max_length": config.max_tokens})
        shutil.copyfile(Path(__file__).with_name("modeling.py"), new / "modeling.py")
        if config.normalize:
            shutil.copyfile(layout.normalizer, new / "normalizer.py")
        copy_weights(layout.weights, new / "model.safetensors")
        write_json(
            new / "config.json",
            {
                "model_type": "tritox",
                "architectures": [CLASS],
                "auto_map": {
                    "AutoConfig": "modeling.TritoxConfig",
                    "AutoModelForSequenceClassification": f"modeling.{CLASS}",
                },
                "tokenizer_class": tokenizer["tokenizer_class"],  # pipelines load none for a model type of our own
                "encoder": config.encoder,
                "pooling": config.pooling,
                "problem_type": config.problem_type,
                "id2label": dict(enumerate(labels)),
                "label2id": {label: i for i, label in enumerate(labels)},
                "max_position_embeddings": config.max_tokens,
                "pad_token_id": config.encoder.get("pad_token_id", 0),
                "torch_dtype": "float32",
            },
        )


def copy_weights(source: Path, target: Path) -> None:
    """A copy that says it is PyTorch's, which transformers insists on and the artifact does not."""
    with source.open("rb") as old, target.open("wb") as new:
        (size,) = struct.unpack("<Q", old.read(8))
        header = json.loads(old.read(size))
        header["__metadata__"] = {"format": "pt"}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        new.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(old, new, 1 << 20)
