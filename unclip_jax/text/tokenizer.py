"""Captions to token ids: byte-level BPE.

    tokens = [bos, bpe(lower(caption))[: context - 2], eos, pad, pad, ...]          mask = not padding

Trained here from captions, or read from a folder in Hugging Face's layout (CLIP's, for one). Every text has an
encoding, since the alphabet is the 256 bytes; a string that is no text (`unclip_jax.core.unicode`) is refused. Special
tokens written out in a caption are ordinary text.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Bool, Int, Int32
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from unclip_jax.core.errors import UserError
from unclip_jax.core.files import atomic_write
from unclip_jax.core.reading import MIB, parse_json, read_text
from unclip_jax.core.unicode import fault

MAX_BYTES, MAX_ID = 16 * MIB, 2**20
BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
MIN_VOCAB_SIZE = 256 + 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids of a batch of captions.

    Attributes:
        tokens: ids, padded to the context.
        mask: True from BOS to EOS, both included.
        truncated: per caption the text that did not fit, or None.
    """

    tokens: Int32[np.ndarray, "b n"]
    mask: Bool[np.ndarray, "b n"]
    truncated: list[str | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer as plain strings: picklable, comparable, hashable.

    Attributes:
        definition: the `tokenizers` library's JSON, canonical (see `_canonical`).
        bos_token, eos_token, pad_token: special tokens; CLIP pads with its EOS.
    """

    definition: str
    bos_token: str
    eos_token: str
    pad_token: str

    def __post_init__(self):
        for token in (self.bos_token, self.eos_token, self.pad_token):
            if token not in self._vocab:
                raise UserError(f"the tokenizer has no token {token!r}; correct its tokenizer_config.json")

    def __reduce__(self):
        # The library's object, cached below, would lose its settings on the way to a reader process.
        return functools.partial(Tokenizer, **dataclasses.asdict(self)), ()

    @staticmethod
    def train(captions: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train byte-level BPE of at most `vocab_size` tokens; the same captions give the same tokenizer.

        Text is put in NFC, lower case and single spaces, as CLIP does; pieces seen once make no token. Raises UserError
        for a caption that is no text.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise UserError(f"vocab_size is {vocab_size}; it must be at least {MIN_VOCAB_SIZE}")
        tokenizer = tokenizers.Tokenizer(models.BPE())
        spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), spaces, normalizers.Strip(), normalizers.Lowercase()]
        )
        # The prefix space makes the first word the same token as any other word.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[BOS, EOS, PAD],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(map(_checked, captions), trainer)
        return Tokenizer(definition=_canonical(tokenizer), bos_token=BOS, eos_token=EOS, pad_token=PAD)

    @staticmethod
    def from_file(folder: str | Path) -> "Tokenizer":
        """Read `tokenizer.json` and its special tokens (`tokenizer_config.json`) from a folder.

        Raises UserError for a missing or unreadable file, or where BOS or EOS is not named.
        """
        folder = Path(folder)
        file = folder / "tokenizer.json"
        if folder.is_file():
            raise UserError(f"{folder} is a file; give the folder that holds it, with tokenizer.json")
        if not file.is_file():
            raise UserError(f"no tokenizer at {file}; give a folder that holds tokenizer.json")
        try:
            definition = _canonical(_library(read_text(file, MAX_BYTES)))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is not a tokenizer ({error}); write it again") from error
        special = _read_special_tokens(folder)
        missing = [name for name in ("bos_token", "eos_token") if name not in special]
        if missing:
            raise UserError(f"{folder} names no {' and no '.join(missing)}; add it to tokenizer_config.json")
        special.setdefault("pad_token", special["eos_token"])
        return Tokenizer(definition=definition, **special)

    @staticmethod
    def from_definition(definition: str, *, bos_token: str, eos_token: str, pad_token: str) -> "Tokenizer":
        """Read the `tokenizers` library's JSON, whatever its order and its settings of a call."""
        try:
            canonical = _canonical(_library(definition))
        except ValueError as error:
            raise UserError(f"this is not a tokenizer ({error}); write it again") from error
        return Tokenizer(definition=canonical, bos_token=bos_token, eos_token=eos_token, pad_token=pad_token)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, each whole or not at all.

        Equal tokenizers give equal bytes; `from_file`, and `transformers`, read them.
        """
        folder = Path(folder)
        config = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        for name, text in (
            ("tokenizer.json", self.definition),
            ("tokenizer_config.json", json.dumps(config, indent=2) + "\n"),
        ):
            with atomic_write(folder / name) as draft:
                draft.write_bytes(text.encode())

    def encode(self, captions: Sequence[str], context: int) -> Encoded:
        """Encode captions into `context` tokens each; an empty caption is BOS EOS.

        What does not fit is cut off in front of the EOS and reported, never dropped in silence. Raises UserError for a
        caption that is no text.
        """
        if context < 2:
            raise UserError(f"context is {context}; it must hold at least BOS and EOS, so 2")
        tokens = np.full((len(captions), context), self.pad_id, np.int32)
        mask = np.zeros((len(captions), context), bool)
        truncated: list[str | None] = []
        for row, caption in enumerate(captions):
            encoding = self._tokenizer.encode(_checked(caption), add_special_tokens=False)
            ids = [self.bos_id, *encoding.ids[: context - 2], self.eos_id]
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
            overflow = encoding.offsets[context - 2 :]
            truncated.append(caption[overflow[0][0] :].strip() if overflow else None)
        return Encoded(tokens=tokens, mask=mask, truncated=truncated)

    def decode(self, tokens: Int[np.ndarray, "b n"]) -> list[str]:
        """Return the captions of rows as `encode` makes them: as it reads them, in lower case, and cut where it cut."""
        rows = [row[1 : (*row, self.eos_id).index(self.eos_id, 1)] for row in np.asarray(tokens).tolist()]
        return [text.strip() for text in self._tokenizer.decode_batch(rows, skip_special_tokens=False)]

    @property
    def vocab_size(self) -> int:
        """Number of rows that an embedding table needs."""
        return max(self._vocab.values()) + 1

    @property
    def bos_id(self) -> int:
        return self._vocab[self.bos_token]

    @property
    def eos_id(self) -> int:
        return self._vocab[self.eos_token]

    @property
    def pad_id(self) -> int:
        return self._vocab[self.pad_token]

    @property
    def identity(self) -> str:
        """sha256, in hex, of everything that decides an encoding."""
        text = json.dumps([self.definition, self.bos_token, self.eos_token, self.pad_token])
        return hashlib.sha256(text.encode()).hexdigest()

    @functools.cached_property
    def _vocab(self) -> dict[str, int]:
        return self._tokenizer.get_vocab()

    @functools.cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        try:
            tokenizer = tokenizers.Tokenizer.from_str(self.definition)
        except Exception as error:  # bare, of a definition that lost something, such as one of two tokens of one id
            raise UserError(f"the tokenizer contradicts itself ({error}); write it again") from error
        tokenizer.encode_special_tokens = True
        return tokenizer


def _checked(caption: str) -> str:
    if (why := fault(caption)) is not None:
        raise UserError(f"the caption {caption!r} {why}; give it in UTF-8")
    return caption


def _library(definition: str) -> tokenizers.Tokenizer:
    """Let the library read its JSON; ValueError where it cannot, or an id is above `MAX_ID`, up to which it counts."""
    data = parse_json(definition, MAX_BYTES)
    model = data.get("model") if isinstance(data, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    added = data.get("added_tokens") if isinstance(data, dict) else None
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    ids += [each.get("id") for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    if any(isinstance(each, int) and each > MAX_ID for each in ids):
        raise ValueError(f"a token has an id above {MAX_ID:,}, the largest that is read")
    try:
        return tokenizers.Tokenizer.from_str(definition)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare Exception, and what is none where the library's own code fails
        raise ValueError(str(error)) from error


def _canonical(tokenizer: tokenizers.Tokenizer) -> str:
    """Return the library's JSON without settings of a call, such as truncation, and with sorted keys."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, sort_keys=True, indent=1) + "\n"


def _read_special_tokens(folder: Path) -> dict[str, str]:
    """Read bos_token, eos_token and pad_token, as far as Hugging Face's two files in the folder name them."""
    special: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        try:
            config = parse_json(read_text(folder / name))
            if not isinstance(config, dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / name} is not JSON ({error}); write it again") from error
        for key in ("bos_token", "eos_token", "pad_token"):
            token = config.get(key)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and token:
                special[key] = token
    return special
