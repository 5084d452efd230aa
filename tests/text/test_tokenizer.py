import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tokenizers

from unclip_jax.core.errors import UserError
from unclip_jax.text.tokenizer import Tokenizer

CAPTIONS = ["A red circle above a blue square", "a green triangle", "two red squares", "a blue circle"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS, 320)


def test_rows_are_bos_text_eos_padding(tokenizer):
    encoded = tokenizer.encode(["a red circle", ""], 8)
    assert encoded.tokens.dtype == np.int32 and encoded.tokens.shape == (2, 8)
    length = encoded.mask.sum(axis=1)
    assert list(length) == [5, 2]  # "a", "red" and "circle" were seen often enough to be one token each
    for row, mask in zip(encoded.tokens, encoded.mask, strict=True):
        n = mask.sum()
        assert mask[:n].all() and not mask[n:].any()
        assert row[0] == tokenizer.bos_id and row[n - 1] == tokenizer.eos_id
        assert (row[n:] == tokenizer.pad_id).all()
        assert not np.isin(row[1 : n - 1], [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]).any()
    assert encoded.truncated == [None, None]


def test_special_ids_differ_and_all_ids_lie_below_vocab_size(tokenizer):
    assert len({tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}) == 3
    everything = "".join(map(chr, range(1, 0x3000))) + "\U0001f600"
    tokens = tokenizer.encode([everything], 40_000).tokens
    assert tokens.min() >= 0 and tokens.max() < tokenizer.vocab_size <= 320


def test_case_and_spaces_do_not_matter_but_words_do(tokenizer):
    tokens = tokenizer.encode(["a red circle", "  A RED\n\tcircle ", "are dcircle"], 16).tokens
    np.testing.assert_array_equal(tokens[0], tokens[1])
    assert (tokens[0] != tokens[2]).any()


def test_composed_and_decomposed_letters_are_equal(tokenizer):
    tokens = tokenizer.encode(["caf\u00e9", "cafe\u0301"], 16).tokens
    np.testing.assert_array_equal(tokens[0], tokens[1])


def test_what_is_cut_is_told_and_the_eos_kept(tokenizer):
    encoded = tokenizer.encode(["a red circle above  A Blue square", "a red circle"], 5)
    assert encoded.truncated == ["above  A Blue square", None]
    assert encoded.mask.all() and (encoded.tokens[:, -1] == tokenizer.eos_id).all()
    np.testing.assert_array_equal(encoded.tokens[0], encoded.tokens[1])
    assert tokenizer.encode(["über alles"], 2).truncated == ["über alles"]
    assert tokenizer.encode(["a 🟥🟦 square"], 3).truncated == ["🟥🟦 square"]


def test_special_tokens_in_a_caption_are_text(tokenizer):
    encoded = tokenizer.encode(["<|endoftext|> a <|startoftext|>"], 64)
    assert (encoded.tokens == tokenizer.eos_id).sum() == 1
    assert (encoded.tokens == tokenizer.bos_id).sum() == 1


def test_a_context_without_room_for_bos_and_eos_is_refused(tokenizer):
    with pytest.raises(UserError, match="context is 1"):
        tokenizer.encode(["a"], 1)


def test_training_is_the_same_in_another_process(tokenizer):
    program = (
        "import json, sys; from unclip_jax.text.tokenizer import Tokenizer;"
        "print(Tokenizer.train(json.load(sys.stdin), 320).identity)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(CAPTIONS),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.stdout.strip() == tokenizer.identity, result.stderr


def test_identity_changes_with_the_vocabulary_and_the_special_tokens(tokenizer):
    other_padding = Tokenizer(
        definition=tokenizer.definition,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.eos_token,
    )
    other_words = Tokenizer.train(["something else"] * 5, 320)
    assert len({tokenizer.identity, other_padding.identity, other_words.identity}) == 3


def test_too_small_a_vocabulary_is_refused():
    assert Tokenizer.train(CAPTIONS, 259).vocab_size == 259
    with pytest.raises(UserError, match="at least 259"):
        Tokenizer.train(CAPTIONS, 258)


def test_saved_and_read_back(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "a")
    again = Tokenizer.from_file(tmp_path / "a")
    assert again == tokenizer and again.identity == tokenizer.identity
    again.save(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "a")) == ["tokenizer.json", "tokenizer_config.json"]


def test_pickled_for_a_reader_process(tokenizer):
    tokenizer.encode(["a"], 4)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer
    text = ["<|endoftext|> a red circle"]
    np.testing.assert_array_equal(again.encode(text, 32).tokens, tokenizer.encode(text, 32).tokens)


def clip_folder(folder, special_tokens_file, special_tokens):
    """A tokenizer laid out like CLIP's at Hugging Face: </w> suffixes, truncation, a template of specials."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocab = {token: i for i, token in enumerate([*letters, *(f"{c}</w>" for c in letters), "ed</w>", "red</w>"])}
    model = tokenizers.models.BPE(vocab, [("e", "d</w>"), ("r", "ed</w>")], end_of_word_suffix="</w>")
    library = tokenizers.Tokenizer(model)
    library.normalizer = tokenizers.normalizers.Lowercase()
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    library.post_processor = tokenizers.processors.RobertaProcessing(("<|endoftext|>", 55), ("<|startoftext|>", 54))
    library.enable_truncation(3)
    library.enable_padding(length=3)
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    (folder / special_tokens_file).write_text(json.dumps(special_tokens))
    return folder


def test_a_hugging_face_folder_is_read_with_its_own_special_tokens(tmp_path):
    content = {"content": "<|startoftext|>", "lstrip": False}
    special = {"bos_token": content, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "other": 1}
    tokenizer = Tokenizer.from_file(clip_folder(tmp_path / "clip", "tokenizer_config.json", special))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (56, 54, 55, 55)
    encoded = tokenizer.encode(["Red a", "b c d e f g"], 6)
    np.testing.assert_array_equal(encoded.tokens[0], [54, 53, 26, 55, 55, 55])
    np.testing.assert_array_equal(encoded.mask[0], [True] * 4 + [False] * 2)
    assert encoded.truncated == [None, "f g"]


def test_special_tokens_map_serves_and_padding_falls_back_to_eos(tmp_path):
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": None}
    tokenizer = Tokenizer.from_file(clip_folder(tmp_path / "clip", "special_tokens_map.json", special))
    assert tokenizer.pad_id == tokenizer.eos_id == 55


def test_folders_that_hold_no_usable_tokenizer(tmp_path, tokenizer):
    with pytest.raises(UserError, match="no tokenizer at"):
        Tokenizer.from_file(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="names no bos_token and no eos_token"):
        Tokenizer.from_file(tmp_path)
    config = {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no token '<s>'"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer"):
        Tokenizer.from_file(tmp_path)


@pytest.mark.parametrize(("caption", "why"), [("caf\udce9", "is not UTF-8"), ("\ud83d", "half a surrogate pair")])
def test_a_string_that_is_no_text_is_refused(tokenizer, caption, why):
    with pytest.raises(UserError, match=why):
        tokenizer.encode(["a red circle", caption], 8)
    with pytest.raises(UserError, match=why):
        Tokenizer.train(["a red circle", caption], 300)


def test_two_tokens_of_one_id_are_refused(tmp_path):
    """The library reads them, and forgets one of them that a merge needs."""
    Tokenizer.train(["a circle above a circle"] * 4, 270).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    definition = json.loads(path.read_text())
    vocab = definition["model"]["vocab"]
    merged = "".join(definition["model"]["merges"][0])
    vocab[merged] += 1
    path.write_text(json.dumps(definition))
    with pytest.raises(UserError, match="out of vocabulary"):
        Tokenizer.from_file(tmp_path)


def test_captions_come_back():
    tokenizer = Tokenizer.train(["a red circle", "two blue rings"] * 3, 300)
    captions = ["A red  circle", "", "two blue rings and more than fit into this"]
    whole, *others = tokenizer.decode(tokenizer.encode(captions, 12).tokens)
    assert (whole, others[0]) == ("a red circle", "")
    assert 0 < len(others[1]) < len(captions[2]) and captions[2].startswith(others[1])
