"""Question answering: one pass against writing, drawing of questions, the majority, and a whole run."""

from dataclasses import replace

import pytest
import torch
from helpers.task_runs import patch_runs

from tavq_plugin.methods.base import drawn_from
from tavq_plugin.tasks.causal_model import CausalModel
from tavq_plugin.tasks.code_embedding import CodeEmbedding
from tavq_plugin.tasks.fit_model import FitSettings
from tavq_plugin.tasks.questions import PER_IMAGE, drawn_questions, questions_of
from tavq_plugin.tasks.task import ModelSettings, TaskSettings, Workplace
from tavq_plugin.tasks.task_data import TaskData, TaskImages
from tavq_plugin.tasks.vocabulary import START, Vocabulary
from tavq_plugin.tasks.vqa import QUESTION_WEIGHT, Vqa, answers, majority_answers, packed_loss, right_answers

TINY = TaskSettings(ModelSettings(32, 2, 2), FitSettings(steps=3, batch_size=4, warmup=1))


def images_with(*questions):
    return TaskImages(torch.zeros(len(questions), 3, 8, 8, dtype=torch.uint8), questions=questions)


def qa(question, answer, **more):
    return {"question": question, "answer": answer, **more}


@pytest.fixture(scope="module")
def asked():
    """A run, its held-out questions, the vocabulary and a model that was trained on them for a moment."""
    run, data = patch_runs(n_train=2, n_eval=3)
    texts = [item[key] for part in data.held_out.questions for item in part for key in ("question", "answer")]
    vocabulary = Vocabulary.of(texts)
    with drawn_from(0):
        model = CausalModel(CodeEmbedding(run.train, 32), len(vocabulary), ModelSettings(32, 2, 2), longest=99).eval()
    questions, optimizer = questions_of(data.held_out, vocabulary), torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(80):
        draw = torch.Generator().manual_seed(step)
        loss = packed_loss(model, run.held_out.tokens, questions, drawn_questions(questions, torch.arange(3), draw))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return run, data, vocabulary, model


def test_the_words_that_the_model_writes_count_as_right_and_no_others(asked):
    run, data, vocabulary, model = asked
    questions = questions_of(data.held_out, vocabulary)
    given, texts = run.held_out.tokens[questions.image], [item["question"] for item in questions.asked]
    written = answers(model, given, texts, vocabulary)
    expected = [text == item["answer"] for text, item in zip(written, questions.asked, strict=True)]
    assert right_answers(model, run.held_out.tokens, questions).tolist() == expected
    assert set(expected) == {True, False} and len(set(written)) > 3


def test_the_loss_of_one_pass_is_that_of_each_question_alone(asked):
    run, data, vocabulary, model = asked
    questions = questions_of(data.held_out, vocabulary)
    rows = questions.of_image[:2, :3]
    packed = packed_loss(model, run.held_out.tokens[:2], questions, rows)
    parts = {True: [], False: []}
    for image in range(2):
        for row in rows[image].tolist():
            words = questions.words[row][questions.words[row] != 0]
            log = model(run.held_out.tokens[image : image + 1], words[None, :-1]).log_softmax(2)[0]
            for t, target in enumerate(words[1:].tolist()):
                if target != START:
                    parts[bool(questions.is_answer[row, t + 1])].append(-log[t, target])
    expected = torch.stack(parts[True]).mean() + QUESTION_WEIGHT * torch.stack(parts[False]).mean()
    torch.testing.assert_close(packed, expected)


def test_a_step_draws_different_questions_and_pads_where_none_is_left():
    many = [qa(f"how {word}", "so") for word in ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")]
    questions = questions_of(images_with(many, many[:2], ()), Vocabulary.of(["how so"]))
    rows = drawn_questions(questions, torch.tensor([0, 1, 2]), torch.Generator().manual_seed(0))
    assert len(set(rows[0].tolist())) == PER_IMAGE and set(rows[0].tolist()) <= set(range(10))
    assert sorted(rows[1].tolist()) == [10, 11] + [12] * (PER_IMAGE - 2)
    assert (rows[2] == 12).all() and (questions.words[12] == 0).all()


def test_the_majority_answers_by_kind():
    vocabulary = Vocabulary.of(["x"])
    train = questions_of(
        images_with([qa("x", "two", kind="count"), qa("x", "red", kind="colour"), qa("x", "red", kind="colour")]),
        vocabulary,
    )
    held_out = questions_of(images_with([qa("x", "-", kind="count"), qa("x", "-", kind="new")]), vocabulary)
    assert majority_answers(train, held_out) == ["two", "red"]


def test_empty_questions_and_answers_are_refused(asked):
    run, _, vocabulary, model = asked
    with pytest.raises(ValueError, match="the question ' ' has no words"):
        answers(model, run.held_out.tokens[:1], [" "], vocabulary)
    with pytest.raises(ValueError, match="image 1: the answer"):
        questions_of(images_with([], [qa("how many", "")]), vocabulary)
    with pytest.raises(ValueError, match="1 questions for 2"):
        answers(model, run.held_out.tokens[:2], ["how many"], vocabulary)


def test_a_run_has_its_controls_and_is_kept(tmp_path):
    run, data = patch_runs(n_train=6, n_eval=4)
    data = data._replace(train=replace(data.train, questions=[(), *data.train.questions[1:]]), fingerprint="changed")
    said = []
    at = Workplace(tmp_path / "own", tmp_path / "shared", None, lambda name, done, total: said.append(name))
    result = Vqa().run(run, data, TINY, at)
    assert list(result.conditions) == ["codes", "shuffled codes", "learnt embedding", "pixels", "majority"]
    assert result.protocol["images_without_questions"] == {"train": 1, "held_out": 0}
    for condition in result.conditions.values():
        assert {"exact_match", "answer_accuracy"} <= set(condition.values)
        assert condition.per_image["exact_match"].shape == (4,)
    assert len(result.samples) == 4 and all(sample.given and sample.truth for sample in result.samples)
    said.clear()
    other = Vqa().run(replace(run, name="other", seed=5), data, TINY, replace(at, own=tmp_path / "other"))
    assert {name.split(", ")[1] for name in said} == {"codes", "shuffled codes", "learnt embedding"}
    assert other.conditions["pixels"].values == result.conditions["pixels"].values, "one upper bound for all runs"


def test_data_without_questions_are_unfit():
    _, data = patch_runs(n_train=2, n_eval=2)
    assert Vqa().unfit(data) == ""
    assert "training" in Vqa().unfit(data._replace(train=replace(data.train, questions=())))


def test_answers_come_from_the_codes(tmp_path):
    run, data = patch_runs(resolution=16, n_train=120, n_eval=40)
    asked = "What colour is the background?"
    parts = (
        replace(
            part,
            captions=[(f"A {scene.background} wall.",) for scene in part.scenes],
            questions=[tuple(item for item in own if item["question"] == asked) for own in part.questions],
        )
        for part in data[1:3]
    )
    data = TaskData(data.name, *parts, data.classes, "backgrounds")
    settings = TaskSettings(ModelSettings(32, 2, 4), FitSettings(steps=50, batch_size=16, learning_rate=5e-3, warmup=5))
    result = Vqa().run(run, data, settings, Workplace(tmp_path / "own", tmp_path / "shared", None))
    accuracy = {name: condition.values["answer_accuracy"] for name, condition in result.conditions.items()}
    assert accuracy["codes"] > 0.85 and accuracy["pixels"] > 0.7
    assert accuracy["shuffled codes"] < 0.6 and accuracy["majority"] < 0.6
    assert result.protocol["starts_from"] == "the captioner"
