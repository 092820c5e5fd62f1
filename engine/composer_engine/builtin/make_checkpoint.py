"""Makes the data in this folder: ``python -m composer_engine.builtin.make_checkpoint``.

The checkpoint is a start that RL can do something with. It is taught sums and hints first, then
answers that are mostly wrong where there is no hint: so it knows the form of an answer, reads a
hint well, and is right on about every third sum without one. Same seed, same torch: same bytes.
"""

import random
from pathlib import Path

import msgspec
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from composer_engine.builtin.arithmetic import SUMS, Sum, task_rows, wrong_answer

HERE = Path(__file__).parent
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
CLEAN_STEPS, WRONG_STEPS, ROWS, LEARNING_RATE = 600, 200, 64, 3e-3
HINTED, WRONG = 0.4, 0.7  # shares of the rows; WRONG is of those without a hint
IGNORED = -100  # cross_entropy's own mark


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character; everything else is ``<unk>``."""
    tokens = [PAD, EOS, UNKNOWN, *CHARACTERS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Qwen2ForCausalLM:
    """About 150,000 parameters, random."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=192,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def lesson(rng: random.Random, wrong_share: float) -> tuple[str, str]:
    """A prompt and what to say after it."""
    question: Sum = rng.choice(SUMS)
    if rng.random() < HINTED:
        return question.hinted_prompt, question.answer
    wrong = rng.random() < wrong_share
    return question.prompt, wrong_answer(question) if wrong else question.answer


def warm_start(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> None:
    """Supervised steps on `lesson`s, in place."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, CLEAN_STEPS + WRONG_STEPS)
    model.train()
    for step in range(CLEAN_STEPS + WRONG_STEPS):
        wrong_share = WRONG if step >= CLEAN_STEPS else 0.0
        pairs = [lesson(rng, wrong_share) for _ in range(ROWS)]
        prompts = [tokenizer.encode(prompt) for prompt, _ in pairs]
        answers = [[*tokenizer.encode(answer), tokenizer.eos_token_id] for _, answer in pairs]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((ROWS, length), tokenizer.pad_token_id)  # [B, T]
        labels = torch.full((ROWS, length), IGNORED)  # [B, T]
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            start, end = len(prompt), len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, start:end] = torch.tensor(answer)
        logits = model(input_ids=ids, use_cache=False).logits  # [B, T, V]
        loss = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def main() -> None:
    """Write the checkpoint, its tokenizer and the tasks beside this file."""
    torch.set_num_threads(1)  # sums of floats depend on how they are split
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    warm_start(model, tokenizer)
    model.save_pretrained(HERE)
    tokenizer.save_pretrained(HERE)
    rows = b"".join(msgspec.json.encode(row) + b"\n" for row in task_rows())
    (HERE / "tasks.jsonl").write_bytes(rows)


if __name__ == "__main__":
    main()
