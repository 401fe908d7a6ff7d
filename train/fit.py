"""Train by a recipe: read, split, fit, calibrate, tune thresholds, evaluate, and write the artifact."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from train import augment, data, linear, loop, metrics, ngrams, version
from train.artifact import (
    LABELS,
    ClassifierConfig,
    InvalidArtifact,
    Labels,
    Layout,
    check_writable,
    git_commit,
    machine,
    new_folder,
    write_json,
)
from train.config import EncoderConfig, InvalidConfig, Recipe, TrainConfig
from train.cooccurrence import token_vectors
from train.model import (
    ToxicityClassifier,
    freeze,
    load,
    load_encoder,
    predict_states,
    pretrained_folder,
    tokenize,
)
from train.normalizer import normalize_text
from train.pretrain import MaskedLanguage, Pieces
from train.scorer import LinearScorer, NgramScorer, Scorer, TransformerScorer, calibrate, write_scored
from train.scorer import load as load_scorer

SPREAD = 0.5
"""Standard deviation, on average, of the embeddings that come from a teacher."""


@dataclass(frozen=True)
class Sources:
    """Where comments and answers come from.

    :param extra: more training comments, of another format: its name and the file.
    :param teacher: an artifact whose scores the student learns.
    :param unlabelled: files of comments that only the teacher has scored.
    """

    data: Path
    extra: tuple[tuple[str, Path], ...] = ()
    teacher: Path | None = None
    unlabelled: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Options:
    """How to run, apart from what is trained.

    :param resume: go on from the checkpoints of an unfinished run; ``restart`` discards them.
    :param random_weights: build the encoder from ``encoder.config`` and learn a vocabulary.
    :param mlflow: an MLflow experiment to log to.
    :param keep: a folder that the teacher's answers stay in, for its next student.
    :param model_version: instead of the one that follows from what changed.
    """

    resume: bool = False
    restart: bool = False
    random_weights: bool = False
    mlflow: str | None = None
    keep: Path | None = None
    model_version: str | None = None


def fit(recipe: Recipe, sources: Sources, out: Path, options: Options = Options()) -> dict[str, Any] | None:  # noqa: B008
    """Train by ``recipe`` and write the artifact folder ``out``, whole or not at all.

    Checkpoints lie in ``<out>.run`` until then. Under ``accelerate launch`` every process trains and the first writes.

    :returns: the content of ``training_info.json``; ``None`` in every process but the first.
    :raises InvalidData, InvalidConfig, InvalidArtifact, EncoderNotFound: before any training, with the reason.
    """
    check_writable(out)  # now, not after hours
    if options.keep is not None and sources.teacher is None:
        raise InvalidConfig("--keep without a teacher, whose scores it keeps: name one with --teacher")
    started, commit = time.monotonic(), git_commit()
    processes = PartialState(cpu=not torch.cuda.is_available())
    previous = version.read(out)
    version.check_explicit(options.model_version, previous)
    transformers.set_seed(recipe.train.seed)
    splits = data.read_splits(sources.data, recipe.data, recipe.train.seed, sources.extra)
    if processes.is_main_process:
        say(
            f"{len(splits.train)} comments to train on, {len(splits.tuning)} to tune on, {len(splits.validation)} to "
            f"validate on; {splits.dropped_duplicates} dropped because they also stand in tuning or validation; "
            f"{splits.contradicting} texts with labels that contradict each other"
        )
    added = augment_training(splits, recipe)
    splits = replace(splits, train=splits.train.joined(added))
    if recipe.linear is not None:
        scorer, throughput = fit_linear(recipe, splits, sources, options)
    elif recipe.ngrams is not None:
        scorer, throughput = fit_ngrams(recipe, splits, sources, options, run_folder(out), processes)
    else:
        scorer, throughput = fit_transformer(recipe, splits, sources, options, run_folder(out), processes)
    if not processes.is_main_process:
        return None

    tuning = calibrate(scorer, scorer.logits(splits.tuning.texts, "tuning"), splits.tuning.labels)
    labels = Labels(splits.labels, metrics.best_f1_thresholds(tuning, splits.tuning.labels, splits.labels))
    scores = scorer.scores(splits.validation.texts, "validation")
    validation = metrics.evaluate(
        scores, splits.validation.labels, splits.labels, labels.thresholds, splits.problem_type
    )
    info = {
        "recipe": asdict(recipe),
        "metrics": {"validation": validation},
        "data": {
            "file": sources.data.name,
            "sha256": data.file_sha256(sources.data),
            "extra": [{"format": f, "file": p.name, "sha256": data.file_sha256(p)} for f, p in sources.extra],
            "unlabelled": [{"file": p.name, "sha256": data.file_sha256(p)} for p in sources.unlabelled],
            "train": len(splits.train),
            "generated": len(added),
            "tuning": len(splits.tuning),
            "validation": len(splits.validation),
            "dropped_duplicates": splits.dropped_duplicates,
        },
        "teacher": sources.teacher.name if sources.teacher is not None else None,
        "random_weights": options.random_weights,
        "seed": recipe.train.seed,
        "seconds": round(time.monotonic() - started, 1),
        "parameters": scorer.parameters,
        "throughput": throughput | {"processes": processes.num_processes},
        "machine": machine(),
        "versions": versions(),
        "git_commit": commit,
    }
    with new_folder(out) as folder:
        layout = Layout(folder)
        scorer.save(folder)
        write_json(layout.labels, labels)
        write_json(layout.training_info, info)
        write_scored(layout.validation, splits.validation, scores)
        write_scored(layout.tuning, splits.tuning, tuning)
        version.write(folder, previous, options.model_version)
    if recipe.linear is None:
        shutil.rmtree(run_folder(out), ignore_errors=True)
    return info


def run_folder(out: Path) -> Path:
    """Where a run keeps its checkpoints until the artifact ``out`` is written."""
    return out.with_name(f"{out.name}.run")


def augment_training(splits: data.Splits, recipe: Recipe) -> data.Comments:
    """Generated training comments, as the recipe asks for; none that stands in tuning or validation."""
    config, seed = recipe.data, recipe.train.seed
    texts: list[str] = []
    labels = [np.zeros((0, len(splits.labels)), np.float32)]
    if config.counterfactuals:
        found = augment.counterfactuals(splits.train.texts, splits.train.labels, config.counterfactuals, seed)
        texts, labels = texts + found[0], [*labels, found[1]]
    if config.patterns:
        try:
            found = augment.patterns(splits.labels, config.patterns, seed)
        except ValueError as error:
            raise InvalidConfig(f"data.patterns: {error}") from None
        texts, labels = texts + found[0], [*labels, found[1]]
    reported = {data.text_key(t) for t in (*splits.tuning.texts, *splits.validation.texts)}
    kept = [i for i, text in enumerate(texts) if data.text_key(text) not in reported]
    return data.Comments([texts[i] for i in kept], np.concatenate(labels)[kept])


def fit_linear(
    recipe: Recipe, splits: data.Splits, sources: Sources, options: Options
) -> tuple[Scorer, dict[str, Any]]:
    """A linear model, and what its training cost.

    :raises InvalidConfig: for what linear models do not have.
    """
    assert recipe.linear is not None
    for given, what in (
        (sources.teacher, "--teacher"),
        (sources.unlabelled, "--unlabelled"),
        (options.resume, "--resume"),
        (options.mlflow, "--mlflow"),
        (options.random_weights, "--random-weights"),
    ):
        if given:
            raise InvalidConfig(f"{what} is for transformers; this recipe trains a linear model: leave it out")
    normalizer = normalize_text if recipe.data.normalize else None
    texts = [normalizer(t) for t in splits.train.texts] if normalizer else splits.train.texts
    started = time.monotonic()
    weights = linear.fit_linear(
        recipe.linear, texts, splits.train.labels, splits.labels, splits.problem_type, recipe.train.seed, say
    )
    config = ClassifierConfig(problem_type=splits.problem_type, normalize=recipe.data.normalize, kind="linear")
    return LinearScorer(weights, config, normalizer), loop.throughput(time.monotonic() - started, len(texts))


def fit_ngrams(
    recipe: Recipe, splits: data.Splits, sources: Sources, options: Options, run: Path, processes: PartialState
) -> tuple[Scorer, dict[str, Any]]:
    """Hashed n-grams, fitted to a teacher's scores where there is one, and what that cost.

    The teacher's own tuning comments are left out, so that they can tell when the two agree. What it says of the others
    is kept in the run folder until the artifact is written.

    :raises InvalidConfig: for what n-grams do not have.
    """
    assert recipe.ngrams is not None
    for given, what in (
        (options.resume, "--resume"),
        (options.mlflow, "--mlflow"),
        (options.random_weights, "--random-weights"),
        (splits.problem_type == metrics.SINGLE_LABEL, "a single-label problem"),
    ):
        if given:
            raise InvalidConfig(f"{what} is for transformers; this recipe trains n-grams, with a sigmoid per label")
    texts, targets = splits.train.texts, splits.train.labels
    if sources.teacher is not None:
        own = teacher_tuning(sources.teacher)
        known = {data.text_key(t) for part in (splits.tuning, splits.validation) for t in part.texts}
        more = [t for path in sources.unlabelled for t in data.read_texts(path)]
        kept = [i for i, text in enumerate(texts) if data.text_key(text) not in own]
        texts = [texts[i] for i in kept]
        more += data.sentences(texts, targets[kept], recipe.distillation.sentences, recipe.train.seed)
        seen = own | known | {data.text_key(t) for t in texts}
        texts += [t for t in more if data.text_key(t) not in seen]
        answers = teach(sources.teacher, texts, splits, options.keep or run, False, processes).logits
        targets = metrics.probabilities(answers, splits.problem_type).astype(np.float32)
    elif sources.unlabelled:
        raise InvalidConfig("--unlabelled without a teacher: name one with --teacher")
    normalizer = normalize_text if recipe.data.normalize else None
    shown = [normalizer(t) for t in texts] if normalizer else texts
    started = time.monotonic()
    weights = ngrams.fit_ngrams(recipe.ngrams, shown, targets, say)
    config = ClassifierConfig(problem_type=splits.problem_type, normalize=recipe.data.normalize, kind="ngrams")
    return NgramScorer(weights, config, normalizer), loop.throughput(time.monotonic() - started, len(texts))


def fit_transformer(
    recipe: Recipe, splits: data.Splits, sources: Sources, options: Options, run: Path, processes: PartialState
) -> tuple[Scorer, dict[str, Any]]:
    """A fine-tuned encoder, and what its training cost.

    The teacher's own tuning comments are left out, so that they can tell when the two agree.
    """
    assert recipe.encoder is not None
    if recipe.encoder.embeddings == "teacher" and sources.teacher is None:
        raise InvalidConfig("encoder.embeddings is teacher, but there is none: name one with --teacher")
    if processes.is_main_process:
        open_run(run, recipe, sources, options)
    processes.wait_for_everyone()
    model, tokenizer = build(
        recipe.encoder,
        splits.train.texts,
        labels=splits.labels,
        problem_type=splits.problem_type,
        normalize=recipe.data.normalize,
        random_weights=options.random_weights,
        vocabulary=run / "tokenizer",
        teacher=sources.teacher if recipe.encoder.embeddings == "teacher" else None,
        writes=processes.is_main_process,
    )
    processes.wait_for_everyone()
    freeze(model, recipe.encoder.freeze_embeddings, recipe.encoder.freeze_layers)

    texts, labels = splits.train.texts, splits.train.labels
    known = {data.text_key(t) for part in (splits.train, splits.tuning, splits.validation) for t in part.texts}
    own = teacher_tuning(sources.teacher)
    kept = [i for i, text in enumerate(texts) if data.text_key(text) not in own]
    texts, labels = [texts[i] for i in kept], labels[kept]
    known |= own
    more = [t for path in sources.unlabelled for t in data.read_texts(path) if data.text_key(t) not in known]
    if sources.teacher is not None:
        found = data.sentences(texts, labels, recipe.distillation.sentences, recipe.train.seed)
        more += [t for t in found if data.text_key(t) not in known]
    if more and sources.teacher is None:
        raise InvalidConfig(f"{len(more)} unlabelled comments and no teacher: name one with --teacher")
    texts = texts + more
    labels = np.concatenate([labels, np.full((len(more), labels.shape[1]), np.nan, np.float32)])
    teaching = None
    if sources.teacher is not None:
        hidden = recipe.distillation.hidden_weight > 0
        teaching = teach(sources.teacher, texts, splits, options.keep or run, hidden, processes)

    config = recipe.train
    balanced = config.class_weights == "balanced"
    objective = loop.Objective(
        model,
        config,
        loop.class_weights(splits.train.labels, splits.problem_type, config.max_class_weight) if balanced else None,
        recipe.distillation if teaching is not None else None,
        teaching.states.shape[1] if teaching is not None and teaching.states is not None else None,
        tokenizer.mask_token_id,
        loop.soft_weights(teaching.logits, recipe.distillation.balance) if teaching is not None else None,
    )
    examples = loop.Examples(texts, labels, lambda t: tokenize(model, tokenizer, t), config.pretokenize, teaching)
    sampler = loop.LikeLengths(
        examples.lengths,
        positive_rows(labels, splits.problem_type),
        config.batch_size,
        config.seed,
        recipe.data.repeat_positives,
        config.sampler == "balanced",
    )
    before = {}
    if recipe.encoder.embeddings != "random" or config.pretrain_epochs:
        rows = examples.rows or tokenize(model, tokenizer, texts)
        if recipe.encoder.embeddings == "teacher" and sources.teacher is not None:
            embed_as_teacher(model, sources.teacher, rows)
        if recipe.encoder.embeddings == "cooccurrence":
            say("embeddings from the tokens' neighbours")
            embed_by_neighbours(model, rows, config.seed)
        if config.pretrain_epochs:
            before = pretrain(model, tokenizer, rows, config, run, options)
    scorer = TransformerScorer(model, tokenizer)
    cost = loop.run(
        objective,
        examples,
        sampler,
        config,
        run,
        tokenizer.pad_token_id,
        lambda: tuning_metrics(scorer, splits),
        resume=options.resume,
        mlflow=options.mlflow,
    )
    return scorer, cost | before


def pretrain(
    model: ToxicityClassifier,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Sequence[int]],
    config: TrainConfig,
    run: Path,
    options: Options,
) -> dict[str, Any]:
    """Pre-train the encoder of ``model`` in place; its weights are kept in the run folder, and taken from there.

    :returns: ``pretraining``, what it cost; nothing where an interrupted run had done it already.
    :raises InvalidConfig: when the tokenizer has no mask token.
    """
    weights = run / "pretrained" / "encoder.safetensors"
    if weights.is_file():
        model.encoder.load_state_dict(load_file(weights))
        return {}
    if tokenizer.mask_token_id is None:
        raise InvalidConfig(
            f"train.pretrain_epochs is {config.pretrain_epochs}, but the tokenizer has no mask token: set it to 0"
        )
    pieces = Pieces(rows)
    say(f"pre-training on {len(pieces)} pieces of comments, then training on their labels")
    cost = loop.run(
        MaskedLanguage(model, tokenizer.mask_token_id, tokenizer.all_special_ids),
        pieces,
        loop.LikeLengths(pieces.lengths, np.zeros(len(pieces), bool), config.batch_size, config.seed),
        replace(config, epochs=config.pretrain_epochs, patience=None),
        run / "pretraining",
        tokenizer.pad_token_id,
        dict,
        resume=options.resume,
        mlflow=options.mlflow,
    )
    processes = PartialState()
    if processes.is_main_process:
        with new_folder(weights.parent) as folder:
            save_file(model.encoder.state_dict(), folder / weights.name)
    processes.wait_for_everyone()
    return {"pretraining": cost}


def open_run(run: Path, recipe: Recipe, sources: Sources, options: Options) -> None:
    """Make the folder of checkpoints, or check that the one that is there belongs to this recipe and data.

    :raises InvalidConfig: when an unfinished run is there and neither ``resume`` nor ``restart`` is wanted, or the run
        to resume was another one.
    """
    about = {
        "recipe": asdict(recipe),
        "data": [data.file_sha256(p) for p in (sources.data, *(p for _, p in sources.extra), *sources.unlabelled)],
        "teacher": fingerprint(sources.teacher) if sources.teacher is not None else None,
        "random_weights": options.random_weights,
    }
    note = run / "run.json"
    if options.restart and not options.resume:
        shutil.rmtree(run, ignore_errors=True)
    if note.is_file():
        before = json.loads(note.read_text(encoding="utf-8"))
        checkpoint = loop.last_checkpoint(run)
        where = f"{run} holds an unfinished run{f' with {Path(checkpoint).name}' if checkpoint else ''}"
        if not options.resume:
            raise InvalidConfig(f"{where}: go on from it with --resume, or discard it with --restart")
        if before != json.loads(json.dumps(about)):
            other = ", ".join(key for key in about if before.get(key) != json.loads(json.dumps(about[key])))
            raise InvalidConfig(f"{where} with another {other}: resume it as it was, or discard it with --restart")
    run.mkdir(parents=True, exist_ok=True)
    write_json(note, about)


def build(
    config: EncoderConfig,
    texts: Sequence[str],
    *,
    labels: Sequence[str] = LABELS,
    problem_type: str = metrics.MULTI_LABEL,
    normalize: bool = False,
    random_weights: bool = False,
    vocabulary: Path | None = None,
    teacher: Path | None = None,
    writes: bool = True,
) -> tuple[ToxicityClassifier, PreTrainedTokenizerFast]:
    """The untrained classifier and its tokenizer; an encoder from scratch learns its vocabulary from ``texts``.

    :param vocabulary: a folder to keep the learnt tokenizer in, and to take it from when it is there.
    :param teacher: an artifact whose tokenizer an encoder from scratch takes instead.
    :param writes: whether this process writes it.
    """
    if config.pretrained is not None and not random_weights:
        encoder, encoder_values = load_encoder(config.pretrained, config.layers)
        limit = getattr(encoder.config, "max_position_embeddings", config.max_tokens)
        if config.max_tokens > limit:
            raise InvalidConfig(f"encoder.max_tokens is {config.max_tokens}, {config.pretrained} reads at most {limit}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained_folder(config.pretrained))
    else:
        if config.config is None:
            raise InvalidConfig("--random-weights needs the architecture in the recipe's encoder.config")
        if teacher is not None:
            tokenizer = transformers.AutoTokenizer.from_pretrained(Layout(teacher).tokenizer)
        elif vocabulary is not None and (vocabulary / "tokenizer.json").is_file():
            tokenizer = transformers.AutoTokenizer.from_pretrained(vocabulary)
        else:
            shown = [normalize_text(t) for t in texts] if normalize else texts
            tokenizer = learn_tokenizer(shown, config.max_vocab, config.config["model_type"])
            if vocabulary is not None and writes:
                with new_folder(vocabulary) as folder:
                    tokenizer.save_pretrained(folder)
        encoder = None
        encoder_values = {
            **config.config,
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            # RoBERTa's position numbers start behind the padding id
            "max_position_embeddings": config.max_tokens + tokenizer.pad_token_id + 1,
        }
    classifier = ClassifierConfig(
        encoder_values, config.pooling, config.max_tokens, config.dropout, problem_type, normalize
    )
    model = ToxicityClassifier(classifier, encoder, len(labels))
    model.normalizer = normalize_text if normalize else None
    if config.encoder_dropout is not None:
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = config.encoder_dropout
    return model, tokenizer


def embed_by_neighbours(model: ToxicityClassifier, rows: Sequence[Sequence[int]], seed: int) -> None:
    """Give tokens that occur in ``rows`` embeddings by their neighbours there, as long as random ones are."""
    table = model.encoder.get_input_embeddings().weight
    vectors = torch.from_numpy(token_vectors(rows, table.shape[0], table.shape[1], seed))
    with torch.no_grad():
        occurs = vectors.any(dim=1)
        table[occurs] = vectors[occurs] * table[occurs].norm(dim=1).mean()


def embed_as_teacher(model: ToxicityClassifier, teacher: Path, rows: Sequence[Sequence[int]]) -> None:
    """Give tokens the teacher's embeddings, reduced to the principal components of those in ``rows``.

    :raises InvalidConfig: for a teacher that has none, or narrower ones.
    """
    source, _, _ = load(teacher)
    found = source.encoder.get_input_embeddings().weight.detach().double()
    table = model.encoder.get_input_embeddings().weight
    if found.shape[0] != table.shape[0] or found.shape[1] < table.shape[1]:
        raise InvalidConfig(
            f"encoder.embeddings is teacher: {teacher} has {found.shape[0]} tokens of {found.shape[1]} values, the "
            f"student {table.shape[0]} of {table.shape[1]}: it must have as many tokens, and no wider ones"
        )
    ids = np.concatenate([np.asarray(row, np.int64) for row in rows])
    counts = torch.from_numpy(np.bincount(ids, minlength=len(found))).double()[:, None]
    centred = found - (found * counts).sum(0) / counts.sum()
    _, _, components = torch.linalg.svd((centred * counts).T @ centred)
    reduced = centred @ components[: table.shape[1]].T
    with torch.no_grad():
        table.copy_(SPREAD * reduced / reduced.std(0).mean())


def learn_tokenizer(texts: Sequence[str], max_vocab: int, model_type: str = "bert") -> PreTrainedTokenizerFast:
    """A tokenizer with BERT's special tokens, its vocabulary learnt from ``texts``.

    Lower-casing WordPiece; for DeBERTa-v2 and v3, whose own is a SentencePiece model, a case-keeping unigram model.
    """
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    if model_type != "deberta-v2":
        return transformers.BertTokenizerFast(tokenizer_object=_learn_wordpiece(texts, max_vocab), do_lower_case=True)
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=max_vocab, special_tokens=special, unk_token="[UNK]", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name.strip('[]').lower()}_token": name for name in special},
    )


def _learn_wordpiece(texts: Sequence[str], max_vocab: int, max_alphabet: int = 1000) -> Tokenizer:
    """The same vocabulary for the same texts, every time.

    The trainer numbers the pieces inside words (``##a``) as it meets them in an unordered map, and breaks ties between
    merges by these numbers. So it is given the alphabet, with a number for each such piece, beforehand.
    """
    from tokenizers.implementations import BertWordPieceTokenizer

    learner = BertWordPieceTokenizer(lowercase=True)
    counts = Counter(character for text in texts for character in learner.normalize(text) if not character.isspace())
    alphabet = sorted(sorted(counts, key=lambda c: (-counts[c], c))[:max_alphabet])
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    learner.train_from_iterator(
        texts,
        vocab_size=max_vocab,
        min_frequency=2,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=[*special, *(f"##{character}" for character in alphabet)],
        show_progress=False,
    )
    # made anew, because the numbered pieces count as special tokens in the trained one
    return BertWordPieceTokenizer(vocab=learner.get_vocab(), lowercase=True)._tokenizer


def teach(
    teacher: Path, texts: Sequence[str], splits: data.Splits, folder: Path, hidden: bool, processes: PartialState
) -> loop.Teaching:
    """The teacher's logits for ``texts`` and, where wanted, its pooled states; kept in ``folder``.

    :raises InvalidArtifact: when the teacher lacks files, or has other labels.
    """
    layout, told = Layout(teacher), fingerprint(teacher)
    labels, problem_type = layout.read_labels().labels, layout.read_config().problem_type
    if (labels, problem_type) != (splits.labels, splits.problem_type):
        raise InvalidArtifact(
            f"the teacher {teacher} has the labels {', '.join(labels)} ({problem_type}), the data "
            f"{', '.join(splits.labels)} ({splits.problem_type}): take a teacher of these labels"
        )
    key = hashlib.sha256("\0".join([told, *texts]).encode()).hexdigest()[:16]
    kept = folder / f"teacher-{key}{'-states' if hidden else ''}.npz"
    if not kept.is_file() and processes.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)  # now, not after all of it
        scorer, _, _ = load_scorer(teacher)
        answers = {"logits": scorer.logits(texts, "teacher").astype(np.float32)}
        if hidden:
            if not isinstance(scorer, TransformerScorer):
                raise InvalidArtifact(f"the teacher {teacher} has no hidden states: set distillation.hidden_weight=0")
            answers["states"] = predict_states(scorer.network, scorer.tokenizer, texts)
        partial = kept.with_name(f".{os.getpid()}-{kept.name}")
        np.savez(partial, **answers)
        partial.replace(kept)
    processes.wait_for_everyone()
    with np.load(kept) as found:
        return loop.Teaching(found["logits"], found["states"] if hidden else None)


def fingerprint(teacher: Path) -> str:
    """A hash of all that an artifact's scores depend on.

    :raises InvalidArtifact: naming every file that is missing.
    """
    layout = Layout(teacher)
    layout.check()
    files = [layout.config, *layout.read_by(layout.read_config())]
    return hashlib.sha256("".join(map(data.file_sha256, files)).encode()).hexdigest()


def teacher_tuning(teacher: Path | None) -> set[str]:
    """The keys of the comments that a teacher's calibration and thresholds come from."""
    layout = Layout(teacher) if teacher is not None else None
    return {data.text_key(row["text"]) for row in layout.read_tuning()} if layout and layout.tuning.is_file() else set()


def positive_rows(labels: np.ndarray, problem_type: str) -> np.ndarray:
    """Rows with any label; single-label: rows of any class but the most frequent. *Shape:* ``(comments,)``."""
    known = np.nan_to_num(labels) > 0.5
    if problem_type == metrics.SINGLE_LABEL:
        known[:, int(known.sum(0).argmax())] = False
    return np.asarray(known.any(1))


def tuning_metrics(scorer: Scorer, splits: data.Splits) -> dict[str, float]:
    """Of the tuning comments, by the names in :data:`train.config.METRICS`; F1 at the best thresholds."""
    truth = splits.tuning.labels
    scores = scorer.scores(splits.tuning.texts)
    thresholds = metrics.best_f1_thresholds(scores, truth, splits.labels)
    found = metrics.evaluate(scores, truth, splits.labels, thresholds, splits.problem_type)
    chance = np.clip(scores, 1e-7, 1 - 1e-7)
    if splits.problem_type == metrics.SINGLE_LABEL:
        loss = -np.log(chance[truth > 0.5]).mean()
    else:
        loss = -(truth * np.log(chance) + (1 - truth) * np.log(1 - chance)).mean()
    values = {"mean_roc_auc": found["mean_roc_auc"], "mean_pr_auc": found["mean_pr_auc"]}
    return {**{k: v if v is not None else 0.0 for k, v in values.items()}, "macro_f1": found["macro_f1"], "loss": loss}


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    from importlib.metadata import version as package_version

    packages = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{p: package_version(p) for p in packages}}


def say(message: str) -> None:
    sys.stderr.write(message + "\n")
